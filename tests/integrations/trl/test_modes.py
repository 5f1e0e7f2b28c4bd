"""GRPO's modes: each against TRL's `kl`, recomputed its way from what reached the monitor."""

import pytest
import torch

MODES = {
    "sequence-level ratios": {
        "importance_sampling_level": "sequence",
        "num_iterations": 2,
        "use_bias_correction_kl": False,
    },
    "samples reused over steps and updates": {
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
        "num_iterations": 2,
        "use_bias_correction_kl": False,
    },
    "the penalty times the ratio": {"num_iterations": 3, "use_bias_correction_kl": True},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "adapters": {"learning_rate": 1e-2},
}


def corrected_kl(batches):
    """As `trl_kl`, with k3 times the ratio of the policy to the sampler."""
    means = []
    for batch in batches:
        d = batch["ref"] - batch["policy"]
        per_token = (torch.exp(d) - d - 1) * torch.exp(batch["policy"] - batch["old"])
        means.append(((per_token * batch["mask"]).sum() / batch["mask"].sum()).item())
    return sum(means) / len(means)


@pytest.mark.parametrize("mode", MODES)
def test_a_mode(watch, lora, formulas, mode):
    config = dict(MODES[mode])
    if mode == "adapters":
        config["peft_config"] = lora()
    run = watch(steps=5, beta=0.04, **config)
    recompute = corrected_kl if config.get("use_bias_correction_kl") else formulas["trl_kl"]
    for step, row in run.rows.items():
        found = recompute(run.batches["train", step])
        assert found == pytest.approx(row["kl"], rel=0, abs=1e-6 * max(row["kl"], 1e-2))
        expected = formulas["k3_mean"](run.log_ratios([step]))
        pair = run.reports["train", step].pairs["policy_ref"]
        assert pair.k3.mean == pytest.approx(expected, rel=0, abs=1e-9)
        assert ("penalty/mean" in pair.values) == (not config.get("use_bias_correction_kl"))
    assert run.rows[5]["kl"] > 1e-3
    assert run.handle.monitor.errors == 0
    if config.get("num_iterations"):
        updates = [run.reports["train", step].pairs["old_policy"] for step in run.rows]
        tokens = config.get("importance_sampling_level") != "sequence"
        assert all(("clip/low" in update.values) == tokens for update in updates)
        assert max(update.k3.mean for update in updates) > 0
