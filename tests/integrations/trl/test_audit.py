"""Audits of real trainers: the logits of the positions are the model's, and the numbers follow."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr
from trl import GRPOConfig

from klmonitor import attach
from klmonitor.hooks.options import Options
from klmonitor_trl.audit import TrlLogits, obstacle

BETA = 0.04
EVERY_TOKEN = 10_000
UNCORRECTED = (
    {"use_bias_correction_kl": False}
    if "use_bias_correction_kl" in GRPOConfig.__dataclass_fields__
    else {}
)


def moved(trainer):
    """The trainer with a policy away from its reference."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return trainer


def batch_of(rows=5, prompt=6, length=9):
    """A generation batch with padding on both sides."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(2, 90, (rows, prompt + length), generator=generator)
    before, after = torch.tensor([0, 2, 1, 4, 0]), torch.tensor([9, 4, 7, 1, 8])
    return {
        "prompt_ids": ids[:, :prompt],
        "prompt_mask": (torch.arange(prompt) >= before[:, None]).long(),
        "completion_ids": ids[:, prompt:],
        "completion_mask": (torch.arange(length) < after[:, None]).long(),
    }


def test_logits_of_the_positions_are_those_of_the_whole_pass(make_trainer, lora):
    for config in ({"beta": BETA}, {"peft_config": lora()}):
        trainer = moved(make_trainer(1, **config))
        batch = batch_of()
        rows, columns = batch["completion_mask"].nonzero()[3:17].unbind(1)
        policy, ref = TrlLogits(trainer, "auto")(batch, rows, columns)
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        model = trainer.model.eval()
        with torch.no_grad():
            whole = model(input_ids=ids, attention_mask=mask).logits
            torch.testing.assert_close(policy, whole[rows, 6 + columns - 1])
            if trainer.ref_model is not None:
                whole = trainer.ref_model(input_ids=ids, attention_mask=mask).logits
            else:
                with model.disable_adapter():
                    whole = model(input_ids=ids, attention_mask=mask).logits
            torch.testing.assert_close(ref, whole[rows, 6 + columns - 1])
        assert not torch.equal(policy, ref)


@pytest.fixture
def audited_run(make_trainer, watched_class):
    """A run whose every step is audited at every token, and what its audits saw."""

    def run(steps=3, **config):
        trainer = moved(make_trainer(steps, beta=BETA, temperature=0.8, **config))
        options = {"audit_every": 1, "audit_positions": EVERY_TOKEN, "run_dir": False}
        watched = watched_class(trainer, **options)
        source = watched.handle.monitor
        seen = []
        audit = next(w for w in _watches() if w.trainer is trainer).audit
        ask = audit._logits

        def spy(batch, rows, columns):
            found = ask(batch, rows, columns)
            seen.append((trainer.state.global_step + 1, *(x.clone() for x in found)))
            return found

        audit._logits = spy
        audit._wanted = lambda: audit._last + 1  # however dear it is beside so small a model
        trainer.train()
        assert source.errors == 0
        return watched, seen

    return run


def _watches():
    from klmonitor_trl.watch import _watches as watches

    return watches


def test_a_run_is_told_the_exact_kl_and_the_exact_pull(audited_run):
    watched, seen = audited_run(loss_type="bnpo", **UNCORRECTED)
    for step in (1, 3):
        pair = watched.reports["train", step].pairs["policy_ref"]
        q, p = (torch.cat([x[i] for x in seen if x[0] == step]).double().numpy() for i in (1, 2))
        log_q, log_p = log_softmax(q / 0.8, -1), log_softmax(p / 0.8, -1)
        exact = rel_entr(np.exp(log_q), np.exp(log_p)).sum(-1).mean()
        assert pair["audit/positions"] == pair.tokens == len(q)
        assert pair["audit/kl"] == pytest.approx(exact, rel=1e-6)
        for name in ("k1", "k2", "k3"):  # the trainer's own log-probs of the same tokens
            assert pair[f"audit/{name}"] == pytest.approx(pair[f"{name}/mean"], rel=1e-4, abs=1e-6)
        assert pair["audit/kl_se"] < pair["audit/k1_se"]
        d, pi = log_p - log_q, np.exp(log_q)
        g, true = (pi * (c - (pi * c).sum(-1, keepdims=True)) for c in (-np.expm1(d), -d))
        along = (g * true).sum() / (true**2).sum()
        assert pair["audit/effective_beta"] == pytest.approx(BETA * along, rel=1e-4)
    text = watched.handle.describe()
    assert "audit   10000 positions of policy_ref, 3 so far" in text
    assert "policy_ref at step 3: in the space of tokens it pulls" in text
    assert "exact KL at" in watched.reports["train", 3].explain()


def test_the_reason_is_said_where_logits_are_not_to_be_had(make_trainer, capsys):
    trainer, options = make_trainer(1, beta=BETA), Options(audit_every=50)
    assert obstacle(trainer, "batch", options) == ""
    assert "not those of GRPOTrainer" in obstacle(trainer, "pairwise", options)
    trainer.is_fsdp_enabled = True
    assert "FSDP shards" in obstacle(trainer, "batch", options)
    trainer.is_fsdp_enabled = False
    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=3))
    kept, trainer.accelerator.state = trainer.accelerator.state, state
    assert "ZeRO-3 shards" in obstacle(trainer, "batch", options)
    trainer.accelerator.state = kept
    without = make_trainer(1, beta=0.0)
    handle = attach(without, run_dir=False, audit_every=50)
    assert "audit_every = 50 is off: there is no reference model" in capsys.readouterr().err
    assert "audit" not in handle.describe()
    handle.detach()
    with pytest.raises(ValueError, match="audit_every = 0"):
        attach(trainer, audit_every=0)
