"""Training is bit for bit the same with and without klmonitor."""

import pytest
import torch

from klmonitor.attachment import attach

CONFIGS = {
    "plain, audited": ({"beta": 0.04}, {"audit_every": 1}),
    "accumulation and evaluation": (
        {
            "beta": 0.04,
            "gradient_accumulation_steps": 2,
            "num_iterations": 2,
            "eval_rows": 8,
            "eval_strategy": "steps",
            "eval_steps": 2,
        },
        {},
    ),
    "adapter-off reference with dropout, audited": (
        {"lora_dropout": 0.1},
        {"reference_every": 1, "audit_every": 2},
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_bit_identical(make_trainer, lora, name):
    config, options = CONFIGS[name]
    config = dict(config)
    if "lora_dropout" in config:
        config["peft_config"] = lora(lora_dropout=config.pop("lora_dropout"))
    runs = []
    for watched in (False, True):
        torch.manual_seed(5)
        trainer = make_trainer(5, disable_dropout=False, **config)
        handle = attach(trainer, **options) if watched else None
        trainer.train()
        if handle is not None:
            assert handle.monitor.errors == 0
            assert "policy_ref" in "".join(map(str, trainer.state.log_history))
        losses = [
            (row["step"], row[key])
            for row in trainer.state.log_history
            for key in ("loss", "eval_loss", "grad_norm", "reward")
            if key in row
        ]
        weights = {key: value.clone() for key, value in trainer.model.state_dict().items()}
        runs.append((losses, weights, torch.get_rng_state()))
    (losses, weights, random), (losses_2, weights_2, random_2) = runs
    assert losses == losses_2
    assert any(value != 0 for _, value in losses)
    assert weights.keys() == weights_2.keys()
    for key, value in weights.items():
        assert torch.equal(value, weights_2[key]), key
    assert torch.equal(random, random_2)
