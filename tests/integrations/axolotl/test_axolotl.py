"""The plugin in axolotl's own run: from a YAML, by its plugin manager, through its builder."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from tests.helpers.doors import OURS, assert_exact, estimates, own, recorded

MODES = {
    "grpo": {},
    "reused": {"trl": {"num_iterations": 2}},
    "data producer": {"trl": {"use_data_producer": True}},
}


def rows(trainer):
    return {row["step"]: row for row in trainer.state.log_history if "loss" in row}


@pytest.mark.parametrize("mode", MODES)
def test_numbers_are_those_of_what_the_trainer_computed(run, mode, record_property):
    trainer, steps, plugin = run(**MODES[mode])
    assert sorted(steps) == [1, 2, 3]
    monitor = plugin.handle.monitor
    assert monitor.errors == 0
    monitor.flush(10)
    kept = recorded(monitor.run_dir)
    largest = 0.0
    for step, batches in steps.items():
        row = rows(trainer)[step]
        for pair, (q, p) in {
            "policy_ref": ("policy", "ref_per_token_logps"),
            "old_policy": ("old_per_token_logps", "policy"),
        }.items():
            if not all({q, p} <= set(batch) for batch in batches):
                assert f"kl/{pair}/k1/mean" not in row
                continue
            columns = ([batch[name] for batch in batches] for name in (q, p, "completion_mask"))
            expected = estimates(*columns)
            largest = max(largest, assert_exact(row, kept[step], pair, expected))
    assert rows(trainer)[3]["kl"] > 1e-4, "the run must have moved, or this compares zeros"
    if mode == "grpo":  # axolotl's own loss computes its kl in half precision
        ours = rows(trainer)[3]["kl/policy_ref/k3/mean"]
        assert rows(trainer)[3]["kl"] == pytest.approx(ours, rel=1e-3)
    record_property("largest difference", largest)
    print(f"axolotl, {mode}: largest difference {largest:.2g}")


def test_training_is_the_same_without_it(run):
    watched, plain = run(), run(ours=False)
    assert plain[2] is None
    mine, theirs = rows(watched[0]), rows(plain[0])
    assert any(name.startswith(OURS) for name in mine[3])
    assert {step: own(row) for step, row in mine.items()} == {
        step: own(row) for step, row in theirs.items()
    }
    weights = zip(watched[0].model.parameters(), plain[0].model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
    print(f"axolotl: {len(own(mine[3]))} metrics a step the same, weights the same bits")


def test_the_table_of_the_yaml_holds_options(run):
    trainer, _, plugin = run(klmonitor={"metrics": ["kl/policy_ref/k1/mean"], "groups": ["math"]})
    ours = {name for name in rows(trainer)[1] if name.startswith("kl/")}
    assert ours == {"kl/policy_ref/k1/mean"}
    record = Path(trainer.args.output_dir) / "klmonitor"
    assert plugin.handle.monitor.run_dir == record
    assert (record / "steps.jsonl").is_file()


def test_a_wrong_option_is_refused_before_a_model_is_loaded(run):
    with pytest.raises(ValueError, match=r"metrisc.*metrics"):
        run(klmonitor={"metrisc": "core"})
    with pytest.raises(ValueError, match="configuration cannot hold a model"):
        run(klmonitor={"reference": "gpt2"})


def test_without_the_hook_training_runs_and_one_line_says_so(run, monkeypatch, caplog):
    from axolotl.integrations.base import BasePlugin, PluginManager

    monkeypatch.delattr(BasePlugin, "post_trainer_create")

    def nothing_of_ours(self, cfg, trainer):  # as the manager of such a version: it calls nobody
        self.plugins["klm_truth.Truth"].post_trainer_create(cfg, trainer)

    monkeypatch.setattr(PluginManager, "post_trainer_create", nothing_of_ours)
    with caplog.at_level(logging.WARNING, logger="klmonitor"):
        trainer, _, plugin = run()
    assert plugin.handle is None
    assert trainer.state.global_step == 3
    said = [record.message for record in caplog.records if record.name == "klmonitor"]
    assert said == [
        "klmonitor: this axolotl calls no post_trainer_create, so it trains on without klmonitor"
    ]


def test_a_trainer_that_cannot_be_watched_trains_on_and_one_line_says_why(run, caplog):
    from klmonitor_axolotl import KLMonitorPlugin

    trainer, _, _ = run(ours=False)

    class Plain:
        """As the trainers of supervised fine-tuning: no completions of its own."""

    Plain.__module__ = type(trainer).__module__
    plugin = KLMonitorPlugin()
    with caplog.at_level(logging.WARNING, logger="klmonitor"):
        plugin.post_trainer_create({}, Plain())
    assert plugin.handle is None
    assert "axolotl's Plain trains on without klmonitor" in caplog.text
