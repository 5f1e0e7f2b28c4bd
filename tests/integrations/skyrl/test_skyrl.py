"""The callback in SkyRL's own loop, fired by its own handler."""

from __future__ import annotations

import logging

import pytest
import torch

from tests.helpers.doors import OURS, estimates, own

PAIRS = {
    "old_ref": ("action_log_probs", "base_action_log_probs"),
    "rollout_old": ("rollout_logprobs", "action_log_probs"),
}


@pytest.fixture
def callback(place):
    from klmonitor_skyrl import KLMonitorCallback

    return KLMonitorCallback


def test_numbers_are_those_of_the_batches(build, train, callback, record_property):
    mine = callback()
    rows, batches = train(build([mine]))
    assert sorted(batches) == [1, 2, 3]
    assert mine.watch.monitor.errors == 0
    largest = 0.0
    for step, batch in batches.items():
        for pair, (q, p) in PAIRS.items():
            expected = estimates(batch[q], batch[p], batch["loss_mask"])
            for name in ("k1", "k2", "k3"):
                found = rows[step][f"kl/{pair}/{name}/mean"]
                assert found == pytest.approx(expected[name], rel=0, abs=1e-9)
                largest = max(largest, abs(found - expected[name]))
    assert rows[3]["kl/old_ref/k3/mean"] > 1e-4, "the run must have moved"
    pair = mine.watch.report.pairs["rollout_old"]
    assert pair["prompts"] == 4
    record_property("largest difference", largest)
    print(f"SkyRL: largest difference {largest:.2g}")


def test_training_is_the_same_without_it(build, train, callback):
    with_it, without = build([callback()]), build()
    mine, theirs = train(with_it)[0], train(without)[0]
    assert any(name.startswith(OURS) for name in mine[3])
    assert {k: own(row) for k, row in mine.items()} == {k: own(row) for k, row in theirs.items()}
    weights = zip(
        with_it.dispatch.models["policy"].parameters(),
        without.dispatch.models["policy"].parameters(),
        strict=True,
    )
    assert all(torch.equal(a, b) for a, b in weights)
    print(f"SkyRL: {len(own(mine[3]))} metrics a step the same, weights the same bits")


def test_attach_adds_the_callback_and_detach_silences_it(build, train, place):
    from klmonitor.attachment import attach

    trainer = build(steps=1)
    handle = attach(trainer, run_dir=False, metrics=["kl/old_ref/tokens"])
    assert "not held: only the workers have it" in handle.describe()
    rows, _ = train(trainer)
    ours = {name for name in rows[1] if name.startswith("kl/")}
    assert ours == {"kl/old_ref/tokens"}
    silent = build(steps=1)
    attach(silent, run_dir=False).detach()
    assert not any(name.startswith(OURS) for name in train(silent)[0][1])


def test_an_alert_saves_a_checkpoint_and_stops(build, train, callback, tmp_path):
    rules = {"limit": {"warn": 1e-6, "critical": 1e-5}}
    mine = callback(rules=rules, on_alert={"*": ["checkpoint", "stop"]})
    trainer = build([mine], folder=tmp_path, steps=6, noise=0.5)
    rows, _ = train(trainer)
    assert mine.watch.report.step == max(rows) < 6
    assert (tmp_path / "ckpts" / f"global_step_{max(rows)}" / "klmonitor.json").is_file()


def test_a_resumed_run_goes_on_from_the_checkpoint(build, train, callback, tmp_path, capsys):
    train(build([callback()], folder=tmp_path, steps=2, ckpt_interval=1))
    again = callback()
    rows, _ = train(build([again], folder=tmp_path, steps=4, ckpt_interval=1, resume_mode="latest"))
    assert sorted(rows) == [3, 4]
    assert "continues from" in capsys.readouterr().err
    assert again.watch.monitor.errors == 0


def test_a_trainer_without_callbacks_trains_on_and_one_line_says_so(
    build, train, place, monkeypatch
):
    import skyrl.train.trainer as module

    from klmonitor.attachment import attach
    from klmonitor.hooks import doors

    said = []
    monkeypatch.setattr(doors, "say", lambda text, *values: said.append(text % values))

    def refused(self, callback):
        raise NotImplementedError("Callbacks are not yet supported")

    monkeypatch.setattr(module.RayPPOTrainer, "add_callback", refused)
    trainer = build()
    handle = attach(trainer, run_dir=False)
    rows, _ = train(trainer)
    assert sorted(rows) == [1, 2, 3]
    assert "was detached from" in handle.describe()
    assert said == [
        "SkyRL's RayPPOTrainer, which takes no callbacks, trains on without klmonitor: "
        "NotImplementedError: Callbacks are not yet supported"
    ]


def test_sft_trains_on_and_wrong_options_are_refused(callback, caplog):
    class SFTTrainer:
        global_step = 0

    mine = callback()
    with caplog.at_level(logging.WARNING, logger="klmonitor"):
        for event in ("on_train_start", "on_step_end", "on_log", "on_save", "on_train_end"):
            getattr(mine, event)(SFTTrainer(), None, None)
    assert mine.watch is None
    assert "it trains on no tokens of its own policy" in caplog.text
    with pytest.raises(ValueError, match="metricss"):
        callback(metricss="core")
