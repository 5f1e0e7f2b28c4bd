"""Our k3 against TRL's own logged `kl`, on the very tensors of real runs."""

import dataclasses
import math

import pytest
from trl import GRPOConfig, RLOOConfig, RLOOTrainer

from klmonitor_trl.names import GENERATE

CONFIGS = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 8},
    "iterations": {"num_iterations": 3, "use_bias_correction_kl": False},
}
FIELDS = {field.name for field in dataclasses.fields(GRPOConfig)}


@pytest.fixture(scope="module", params=CONFIGS)
def run(watch, request):
    config = {key: value for key, value in CONFIGS[request.param].items() if key in FIELDS}
    return watch(steps=8, beta=0.04, **config)


def test_k3_is_trls_kl(run, formulas, record_property):
    assert sorted(run.rows) == list(range(1, 9))
    largest = 0.0
    for step, row in run.rows.items():
        kl = row["kl"]
        found = formulas["trl_kl"](run.batches["train", step])
        assert found == pytest.approx(kl, rel=0, abs=1e-6 * max(kl, 1e-2))
        largest = max(largest, abs(found - kl))
    record_property("GRPO", largest)
    assert run.rows[8]["kl"] > 1e-3, "the run must have moved, or this compares zeros"
    assert run.handle.monitor.errors == 0


def test_k3_is_the_token_mean_in_float64(run, formulas):
    for step in run.rows:
        expected = formulas["k3_mean"](run.log_ratios([step]))
        pair = run.reports["train", step].pairs["policy_ref"]
        assert pair.k3.mean == pytest.approx(expected, rel=0, abs=1e-9)
        assert run.rows[step]["kl/policy_ref/k3/mean"] == pair.k3.mean


def test_a_row_has_at_most_30_series_of_ours(run):
    pairs = 2 if run.trainer.args.num_iterations > 1 else 1
    assert len(run.reports["train", 8].pairs) == pairs
    ours = {key for key in run.rows[8] if key.startswith(("kl/", "klmonitor/"))}
    assert {"klmonitor/active", "kl/alerts"} <= ours
    assert 10 * pairs < len(ours) <= 30


def test_the_penalty_is_beta_times_k3_and_the_clip_range_is_counted_raw(run):
    for step in run.rows:
        pair = run.reports["train", step].pairs["policy_ref"]
        assert pair["penalty/mean"] == pytest.approx(0.04 * pair.k3.mean, rel=1e-12)
        assert pair["penalty/se"] == pytest.approx(0.04 * pair.k3.se, rel=1e-12)
        if run.trainer.args.num_iterations > 1:
            d = run.log_ratios([step], q="old", p="policy")
            update = run.reports["train", step].pairs["old_policy"]
            assert update["unclipped/tokens"] == 0  # known: TRL's advantages are passed on
            low, high = math.log1p(-run.trainer.epsilon_low), math.log1p(run.trainer.epsilon_high)
            near = ((d - low).abs() < 0.01 * -low) | ((d - high).abs() < 0.01 * high)
            slack = near.double().mean().item() + 1e-12
            assert update["clip/low"] == pytest.approx((d < low).double().mean().item(), abs=slack)
            assert update["clip/high"] == pytest.approx(
                (d > high).double().mean().item(), abs=slack
            )


def test_a_row_logged_every_ten_steps_is_the_union_of_the_ten(watch, formulas):
    run = watch(steps=20, beta=0.04, logging_steps=10)
    assert sorted(run.rows) == [10, 20]
    for last in (10, 20):
        row, steps = run.rows[last], range(last - 9, last + 1)
        d = run.log_ratios(steps)
        assert row["kl/policy_ref/k3/mean"] == pytest.approx(formulas["k3_mean"](d), abs=1e-9)
        assert row["kl/policy_ref/k1/mean"] == pytest.approx((-d).mean().item(), abs=1e-9)
        assert row["kl/policy_ref/k2/mean"] == pytest.approx((d * d / 2).mean().item(), abs=1e-9)
        assert row["kl/policy_ref/outliers/k3"] == (d >= 2).sum().item()
    unweighted = [run.reports["train", step].pairs["policy_ref"].k3.mean for step in range(11, 21)]
    assert run.rows[20]["kl/policy_ref/k3/mean"] != pytest.approx(sum(unweighted) / 10, abs=1e-9)


def test_the_steps_after_the_last_row_join_the_summary_row(watch, formulas):
    run = watch(steps=5, beta=0.04, logging_steps=3)
    summary = run.trainer.state.log_history[-1]
    assert "train_runtime" in summary
    expected = formulas["k3_mean"](run.log_ratios([4, 5]))
    assert summary["kl/policy_ref/k3/mean"] == pytest.approx(expected, abs=1e-9)


def test_a_prompts_completions_share_its_id(watch):
    run = watch(steps=2, beta=0.04, per_device_train_batch_size=32)
    batch = run.batches["train", 1][0]
    assert batch["prompt_ids"].shape == (32,)
    counts = batch["prompt_ids"].unique(return_counts=True)[1]
    assert counts.tolist() == [8, 8, 8, 8]
    assert batch["prompt_ids"].min() >= 0
    assert batch["prompt_ids"].max() < 2**53


@pytest.mark.skipif(not hasattr(RLOOTrainer, GENERATE), reason="this RLOO is one long train()")
def test_rloos_pair_is_that_of_the_sampler(watch, record_property):
    run = watch(steps=3, beta=0.04, trainer_class=RLOOTrainer, config_class=RLOOConfig)
    largest = 0.0
    for step, row in run.rows.items():
        batch = run.batches["train", step][0]
        assert {"policy", "old", "ref"} <= batch.keys()
        k1 = ((batch["old"] - batch["ref"]) * batch["mask"]).sum() / batch["mask"].sum()
        assert k1.item() == pytest.approx(row["kl"], abs=1e-6 * max(row["kl"], 1e-2))
        largest = max(largest, abs(k1.item() - row["kl"]))
        assert (batch["old"] - batch["policy"])[batch["mask"].bool()].abs().max() < 1e-6
        pairs = run.reports["train", step].pairs
        assert set(pairs) == {"old_ref", "old_policy"}
        assert pairs["old_ref"].k1.mean == pytest.approx(row["kl"], abs=1e-7)
        assert pairs["old_ref"]["penalty/mean"] == pytest.approx(0.04 * row["kl"], abs=1e-8)
        assert pairs["old_ref"]["on_policy"] == 1
    assert run.rows[3]["kl"] != 0
    record_property("RLOO", largest)
