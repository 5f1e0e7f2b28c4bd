"""Evaluation is apart from training, and its means and errors join its row."""

import pytest


def test_an_evaluations_row_has_its_means_and_errors(watch, formulas):
    run = watch(
        steps=4,
        beta=0.04,
        eval_rows=16,
        eval_strategy="steps",
        eval_steps=2,
        per_device_eval_batch_size=8,
    )
    rows = {r["step"]: r for r in run.trainer.state.log_history if "eval_loss" in r}
    assert sorted(rows) == [2, 4]
    for step, row in rows.items():
        d = run.log_ratios([step], phase="eval")
        report = run.reports["eval", step].pairs["policy_ref"]
        assert row["eval_kl/policy_ref/k3/mean"] == pytest.approx(formulas["k3_mean"](d), abs=1e-9)
        assert row["eval_kl/policy_ref/k1/se"] == report.k1.se > 0
        assert row["eval_kl/policy_ref/k3/se"] == report.k3.se > 0
        assert report.tokens == d.numel()
        kl = row["eval_kl"]
        found = formulas["trl_kl"](run.batches["eval", step])
        assert found == pytest.approx(kl, rel=0, abs=1e-6 * max(kl, 1e-2))
        assert {key for key in row if "var" in key or "alerts" in key} == set()


def test_training_reports_hold_no_evaluation_tokens(watch):
    run = watch(steps=3, beta=0.04, eval_rows=8, eval_strategy="steps", eval_steps=1)
    for step in (1, 2, 3):
        d = run.log_ratios([step])
        assert run.reports["train", step].pairs["policy_ref"].tokens == d.numel()
        assert not any(key.startswith("eval") for key in run.rows[step])


def test_an_adapter_off_reference_covers_the_first_batch_of_an_evaluation(watch, lora):
    run = watch(steps=2, peft_config=lora(), eval_rows=16, per_device_eval_batch_size=8)
    for _ in range(2):
        row = run.trainer.evaluate()
        assert row["eval_kl/policy_ref/k3/mean"] > 0
        held = ["ref" in batch for batch in run.batches["eval", 2]]
        assert held[0]


def test_evaluations_of_several_sets_keep_their_names(watch):
    run = watch(steps=1, beta=0.04, eval_rows=8)
    dataset = run.trainer.eval_dataset
    metrics = run.trainer.evaluate({"easy": dataset, "hard": dataset})
    assert metrics["eval_easy_kl/policy_ref/k3/mean"] >= 0
    assert metrics["eval_hard_kl/policy_ref/k3/mean"] >= 0
