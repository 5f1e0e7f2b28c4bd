"""The callback in ms-swift's own run: from its command line's arguments, through its registry."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from tests.helpers.doors import OURS, assert_exact, estimates, own, recorded

PAIRS = {
    "policy_ref": ("policy", "ref"),
    "old_policy": ("old", "policy"),
}


def rows(trainer):
    return {row["step"]: row for row in trainer.state.log_history if "loss" in row}


def watch_of(trainer):
    (callback,) = (
        one for one in trainer.callback_handler.callbacks if type(one).__name__ == "NamedCallback"
    )
    return callback


@pytest.mark.parametrize("mode", ["plain", "reused"])
def test_numbers_are_those_of_what_the_trainer_computed(run, mode, record_property):
    more = {} if mode == "plain" else {"num_iterations": 2, "gradient_accumulation_steps": 2}
    trainer, steps = run(**more)
    callback = watch_of(trainer)
    monitor = callback.handle.monitor
    assert monitor.errors == 0
    assert callback.handle.describe().startswith("klmonitor watches GRPOTrainer (ms-swift ")
    assert sorted(steps) == [1, 2, 3]
    monitor.flush(10)
    kept = recorded(monitor.run_dir)
    largest = 0.0
    for step, batches in steps.items():
        row = rows(trainer)[step]
        for pair, (q, p) in PAIRS.items():
            expected = estimates(*([one[name] for one in batches] for name in (q, p, "mask")))
            largest = max(largest, assert_exact(row, kept[step], pair, expected))
    assert rows(trainer)[3]["kl/policy_ref/k3/mean"] > 1e-4, "the run must have moved"
    if mode == "plain":
        last = rows(trainer)[3]
        assert last["kl"] == pytest.approx(last["kl/policy_ref/k3/mean"], rel=1e-3)
    record_property("largest difference", largest)
    print(f"ms-swift, {mode}: largest difference {largest:.2g}")


def test_a_prompts_completions_are_one_cluster_and_tokens_are_the_completions(run):
    trainer, _ = run(max_steps=1)
    pair = watch_of(trainer).report.pairs["policy_ref"]
    assert pair["prompts"] == 2  # 16 completions, 8 a prompt
    text = Path(trainer.args.output_dir, "klmonitor", "tokens.jsonl")
    assert text.is_file()


def test_training_is_the_same_without_it(run):
    mine, theirs = (run(ours=ours)[0] for ours in (True, False))
    assert any(name.startswith(OURS) for name in rows(mine)[3])
    assert {k: own(row) for k, row in rows(mine).items()} == {
        k: own(row) for k, row in rows(theirs).items()
    }
    weights = zip(mine.model.parameters(), theirs.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
    print(f"ms-swift: {len(own(rows(mine)[3]))} metrics a step the same, weights the same bits")


def test_options_come_from_the_environment_and_wrong_ones_are_refused(run):
    trainer, _ = run(max_steps=1, environ={"KLMONITOR_METRICS": '["kl/policy_ref/k1/mean"]'})
    ours = {name for name in rows(trainer)[1] if name.startswith("kl/")}
    assert ours == {"kl/policy_ref/k1/mean"}
    with pytest.raises(ValueError, match="metrics"):
        run(environ={"KLMONITOR_METRICSS": "core"})


def test_without_what_is_wrapped_training_runs_and_one_line_says_what_is_missing(
    run, monkeypatch, caplog
):
    from klmonitor_swift import watch

    monkeypatch.setattr(watch, "LOSS", "_compute_loss_of_another_version")
    with caplog.at_level(logging.WARNING, logger="klmonitor"):
        trainer, steps = run()
    assert sorted(steps) == [1, 2, 3]
    assert watch_of(trainer).handle is None
    said = [record.message for record in caplog.records if record.name == "klmonitor"]
    assert len(said) == 1
    assert "it has no _compute_loss_of_another_version" in said[0]
    assert "trains on without klmonitor" in said[0]


def test_without_the_registry_importing_us_says_so(monkeypatch, caplog):
    pytest.importorskip("swift")
    import swift.callbacks

    import klmonitor_swift

    monkeypatch.delattr(swift.callbacks, "callbacks_map", raising=False)
    monkeypatch.setitem(__import__("sys").modules, "swift.callbacks", object())
    with caplog.at_level(logging.WARNING, logger="klmonitor"):
        klmonitor_swift.register()
    assert "callbacks_map" in caplog.text
