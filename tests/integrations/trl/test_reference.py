"""References where TRL holds none."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from klmonitor import attach
from klmonitor_trl.reference import adapters_off, given_model, unchanged


def test_lora_at_trls_defaults_fills_policy_ref(watch, lora, capsys):
    run = watch(steps=12, peft_config=lora())
    assert run.trainer.beta == 0.0
    filled = [step for step in range(1, 13) if "policy_ref" in run.reports["train", step].pairs]
    assert filled == [1, 11]
    assert run.reports["train", 11].pairs["policy_ref"].k3.mean > 1e-5
    assert run.rows[11]["kl/policy_ref/k3/mean"] > 1e-5
    assert "kl/policy_ref/k3/mean" not in run.rows[12]
    said = capsys.readouterr().err
    assert "adapters off) took" in said
    assert "one batch in 10" in said


def test_a_model_with_adapters_of_transformers_is_the_policy(make_trainer, lora):
    """It has no name for the active one; TRL takes PEFT's own models for a reference."""
    run = make_trainer(2, beta=0.04)
    run.model.add_adapter(lora())
    handle = attach(run)
    run.train()
    handle.detach()
    assert handle.monitor.errors == 0
    assert handle.monitor.active
    assert "in compute_loss (2 micro-batches so far)" in handle.describe()


def test_adapters_off_gives_trls_own_reference(make_trainer, lora):
    trainer = make_trainer(beta=0.04, peft_config=lora())
    trainer.train()
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    batch = trainer._generate_and_score_completions(list(trainer.train_dataset.select(range(8))))
    mine = adapters_off(trainer, trainer._get_per_token_logps_and_entropies)(batch, 3)
    mask = batch["completion_mask"].bool()
    assert torch.equal(mine[mask], batch["ref_per_token_logps"][mask])


def test_an_adapter_that_starts_trained_has_another_reference(make_trainer, lora, capsys):
    """The model without it is the bare base: KL to it is not 0 before the first update."""
    for trained in (True, False):
        trainer = make_trainer(2, peft_config=lora())
        for name, parameter in trainer.model.named_parameters():
            if trained and "lora_B" in name:
                parameter.data.normal_()
        handle = attach(trainer)
        said, described = capsys.readouterr().err, handle.describe()
        handle.detach()
        assert ("bare base model, not where training started" in said) == trained
        assert ("the bare base, not where training started" in described) == trained


def test_a_given_model_is_evaluated_as_trl_evaluates_its_own(make_trainer, model_path):
    trainer = make_trainer(beta=0.04, temperature=0.7)
    batch = trainer._generate_and_score_completions(list(trainer.train_dataset.select(range(8))))
    reference = AutoModelForCausalLM.from_pretrained(model_path)
    mine = given_model(trainer, reference)(batch, 3)
    mask = batch["completion_mask"].bool()
    torch.testing.assert_close(
        mine.detach()[mask], batch["ref_per_token_logps"][mask], rtol=0, atol=1e-5
    )


def test_a_given_model_fills_policy_ref(watch, model_path):
    reference = AutoModelForCausalLM.from_pretrained(model_path)
    run = watch(steps=3, options={"reference": reference, "reference_every": 2})
    assert [step for step in (1, 2, 3) if run.reports["train", step].pairs] == [1, 3]
    assert run.reports["train", 3].pairs["policy_ref"].k3.mean > 1e-4
    assert "policy_ref: 2 steps with its tokens so far" in run.handle.describe(), "its own time"


def test_without_any_reference_it_prints_the_line_to_add(watch, model_path, capsys):
    run = watch(steps=2)
    said = capsys.readouterr().err
    assert "no second distribution" in said
    assert f'from_pretrained("{model_path}")' in said
    assert run.reports["train", 2].pairs == {}
    assert run.handle.monitor.errors == 0


def test_a_reference_leaves_modes_and_flags_as_they_were(make_trainer, lora):
    trainer = make_trainer(peft_config=lora(lora_dropout=0.1))
    model = trainer.model
    frozen = next(p for n, p in model.named_parameters() if "lora_A" in n)
    frozen.requires_grad_(False)
    model.train()
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    batch = trainer._generate_and_score_completions(list(trainer.train_dataset.select(range(8))))
    adapters_off(trainer, trainer._get_per_token_logps_and_entropies)(batch, 8)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    with unchanged(model):
        assert not any(module.training for module in model.modules())


def test_a_model_beside_trls_reference_is_refused(make_trainer, model_path):
    from klmonitor.attachment import attach

    trainer = make_trainer(beta=0.04)
    with pytest.raises(ValueError, match=r"holds a reference already \(beta = 0.04\)"):
        attach(trainer, reference=AutoModelForCausalLM.from_pretrained(model_path))


def test_a_reference_of_another_kind_is_refused(make_trainer):
    from klmonitor.attachment import attach

    with pytest.raises(TypeError, match="give 'auto', a model, a function"):
        attach(make_trainer(), reference="Qwen/Qwen2-0.5B")
