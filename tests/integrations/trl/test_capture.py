"""Which log-probs reach the monitor, on which tokens."""

import pytest
import torch

from klmonitor.attachment import attach


def train_with_batches(make_trainer, alter, steps=2, column=None, **options):
    """Train with `alter(batch)` applied to what TRL generates, as vLLM or tools would fill it."""
    trainer = make_trainer(steps, beta=0.04, num_generations=4)
    if column:
        trainer.train_dataset = trainer.train_dataset.add_column(*column)
    generate = trainer._generate_and_score_completions

    def altered(rows):
        batch = generate(rows)
        alter(batch)
        return batch

    trainer._generate_and_score_completions = altered
    handle = attach(trainer, **options)
    reports, step = [], handle.monitor.step

    def keep(*args, **kwargs):
        reports.append(step(*args, **kwargs))
        return reports[-1]

    handle.monitor.step = keep
    trainer.train()
    assert handle.monitor.errors == 0
    return reports


def test_the_engines_log_probs_are_the_rollout_policy(make_trainer):
    def alter(batch):
        batch["sampling_per_token_logps"] = batch["ref_per_token_logps"] - 0.25

    reports = train_with_batches(make_trainer, alter)
    first = reports[0].pairs
    assert set(first) == {"policy_ref", "rollout_policy"}
    assert first["rollout_policy"].k1.mean == pytest.approx(-0.25, abs=1e-6)
    assert first["policy_ref"].k3.mean == pytest.approx(0, abs=1e-9)
    assert first["policy_ref"]["on_policy"] == 0


def test_an_engine_that_gives_nan_is_counted_and_harmless(make_trainer):
    def alter(batch):
        engine = batch["ref_per_token_logps"].clone()
        engine[:, 0] = float("nan")
        batch["sampling_per_token_logps"] = engine

    reports = train_with_batches(make_trainer, alter)
    pair = reports[0].pairs["rollout_policy"]
    assert pair["nonfinite"] == 16
    assert pair.k3.mean == pytest.approx(0, abs=1e-9)


def test_tokens_of_tools_are_left_out(make_trainer):
    kept = []

    def alter(batch):
        tools = torch.ones_like(batch["completion_mask"])
        tools[:, ::2] = 0
        batch["tool_mask"] = tools
        kept.append(int((batch["completion_mask"] * tools).sum()))

    reports = train_with_batches(make_trainer, alter)
    assert [report.pairs["policy_ref"].tokens for report in reports] == kept


def test_groups_are_reported_apart(make_trainer):
    names = ["math", "code", "chat", "math"] * 16
    reports = train_with_batches(
        make_trainer,
        lambda batch: None,
        steps=3,
        column=("domain", names),
        groups=["math", "code"],
        group_column="domain",
    )
    values = reports[2].pairs["policy_ref"].values
    groups = {key.split("/")[1] for key in values if key.startswith("group/")}
    assert groups <= {"math", "code", "other"}
    assert len(groups) >= 2
    for group in groups:
        assert values[f"group/{group}/k3/mean"] > 0
