"""A trainer in the layout of Unsloth's: its loss scores within itself, its log-probs are None.

Unsloth itself needs an accelerator to be imported. The module below is written as Unsloth writes
one: TRL's trainer with another ``compute_loss``, which hands all log-probs to
``UnslothEfficientGRPO.apply`` among its globals (sources of 2026.10.9).
"""

from __future__ import annotations

import sys
import types

import pytest
import torch
from trl import GRPOTrainer

from klmonitor_trl.fused import fused_loss
from tests.helpers.doors import estimates

MODULE = """
import torch
from trl import GRPOTrainer

SEEN = {}


class UnslothEfficientGRPO(torch.autograd.Function):
    @staticmethod
    def forward(ctx, new, old, ref, sampling, lm_head, ids, mask, advantages, beta, *others):
        with torch.enable_grad():
            x = new.detach().requires_grad_()
            old = x.detach() if old is None else old
            per_token = -(x - old).exp() * advantages.unsqueeze(1)
            if beta:
                per_token = per_token + beta * ((ref - x).exp() - (ref - x) - 1)
            loss = (per_token * mask).sum() / mask.sum()
            ctx.save_for_backward(torch.autograd.grad(loss, x)[0])
        return loss.detach()

    @staticmethod
    def backward(ctx, grad):
        return (ctx.saved_tensors[0] * grad, *(None,) * 12)


def grpo_accumulated_loss(trainer, input_ids, attention_mask, logits_to_keep, completion_mask,
                          advantages, old_logps, ref_logps):
    model = trainer.accelerator.unwrap_model(trainer.model)
    logits = model(input_ids, attention_mask=attention_mask).logits[:, -logits_to_keep - 1 : -1]
    ids = input_ids[:, -logits_to_keep:]
    scores = (logits.float() / trainer.temperature).log_softmax(-1)
    new = scores.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    SEEN.setdefault(trainer.state.global_step + 1, []).append(
        {"policy": new.detach().clone(), "old": old_logps, "ref": ref_logps,
         "mask": completion_mask.clone()}
    )
    return UnslothEfficientGRPO.apply(
        new, old_logps, ref_logps, None, None, ids, completion_mask, advantages, trainer.beta,
        None, 1, {}, None,
    )


class UnslothGRPOTrainer(GRPOTrainer):
    def _get_per_token_logps_and_entropies(self, model, ids, mask, keep, *args, **kwargs):
        if kwargs.pop("compute_efficient", False):
            return None, None
        return super()._get_per_token_logps_and_entropies(model, ids, mask, keep, *args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        keep = inputs["completion_ids"].size(1)
        self._get_per_token_logps_and_entropies(model, ids, mask, keep, compute_efficient=True)
        loss = grpo_accumulated_loss(
            self, ids, mask, keep, inputs["completion_mask"], inputs["advantages"],
            inputs.get("old_per_token_logps"), inputs.get("ref_per_token_logps"),
        )
        return loss / self.current_gradient_accumulation_steps
"""


@pytest.fixture
def unsloth(monkeypatch):
    module = types.ModuleType("UnslothGRPOTrainer")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(MODULE, vars(module))
    return module


def test_numbers_are_those_that_the_loss_was_handed(unsloth, watch):
    run = watch(steps=3, beta=0.04, trainer_class=unsloth.UnslothGRPOTrainer, num_iterations=2)
    assert run.handle.monitor.errors == 0
    assert "UnslothEfficientGRPO.apply in compute_loss" in run.handle.describe()
    assert "compute_loss is not TRL's own" in run.handle.describe()
    for step, batches in unsloth.SEEN.items():
        pairs = run.reports["train", step].pairs
        for name, (q, p) in {
            "policy_ref": ("policy", "ref"),
            "old_policy": ("old", "policy"),
        }.items():
            expected = estimates(*([batch[x] for batch in batches] for x in (q, p, "mask")))
            for estimator in ("k1", "k2", "k3"):
                assert pairs[name][f"{estimator}/mean"] == pytest.approx(
                    expected[estimator], abs=1e-9
                )
    assert run.reports["train", 3].pairs["policy_ref"]["prompts"] == 2


def test_training_is_the_same_without_it_and_detach_takes_the_wrap_off(
    unsloth, make_trainer, watched_class
):
    plain = make_trainer(2, beta=0.04, trainer_class=unsloth.UnslothGRPOTrainer)
    plain.train()
    watched = watched_class(make_trainer(2, beta=0.04, trainer_class=unsloth.UnslothGRPOTrainer))
    assert "apply" in vars(unsloth.UnslothEfficientGRPO)
    watched.trainer.train()
    weights = zip(plain.model.parameters(), watched.trainer.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
    watched.handle.detach()
    assert "apply" not in vars(unsloth.UnslothEfficientGRPO)


def test_trls_own_loss_has_no_such_thing(make_trainer):
    assert fused_loss(make_trainer(1)) is None
    assert fused_loss(GRPOTrainer) is None


class Flattened(GRPOTrainer):
    """As axolotl's with ``batch_flattening``: another function gives the loss its log-probs."""

    seen = ()

    def _get_per_token_logps_and_entropies_flattened(self, *args, **kwargs):
        return GRPOTrainer._get_per_token_logps_and_entropies(self, *args, **kwargs)

    def _compute_loss(self, model, inputs):
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        attended = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        keep, mask = inputs["completion_ids"].size(1), inputs["completion_mask"]
        found = self._get_per_token_logps_and_entropies_flattened(model, ids, attended, keep)[0]
        self.seen += ((found.detach().clone(), inputs["ref_per_token_logps"], mask.clone()),)
        return -((found - found.detach()).exp() * inputs["advantages"][:, None] * mask).mean()


def test_a_loss_of_flattened_batches_is_watched(watch):
    run = watch(steps=2, beta=0.04, trainer_class=Flattened)
    assert run.handle.monitor.errors == 0
    for step, (policy, ref, mask) in enumerate(run.trainer.seen, 1):
        pair = run.reports["train", step].pairs["policy_ref"]
        expected = estimates(policy, ref, mask)
        assert all(
            pair[f"{name}/mean"] == pytest.approx(expected[name], abs=1e-9)
            for name in ("k1", "k2", "k3")
        )
