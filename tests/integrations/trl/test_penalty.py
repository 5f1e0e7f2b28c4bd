"""The KL term as TRL's trainers have it: read right, and its coefficients TRL's own gradient."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from klmonitor import Penalty, attach
from klmonitor_trl.demo import tiny
from klmonitor_trl.names import GENERATE
from klmonitor_trl.objective import penalty_of

CORRECTS = "use_bias_correction_kl" in GRPOConfig.__dataclass_fields__
BETA = 0.04


def batch_of(trainer, rows=4, columns=7):
    """Inputs of the loss whose advantages are 0, so that only the KL term has a gradient."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, 90, (rows, 5 + columns), generator=generator)
    lengths = torch.tensor([7, 3, 5, 6])
    mask = (torch.arange(columns) < lengths[:, None]).long()
    inputs = {
        "prompt_ids": ids[:, :5],
        "prompt_mask": torch.ones(rows, 5, dtype=torch.long),
        "completion_ids": ids[:, 5:],
        "completion_mask": mask,
        "advantages": torch.zeros(rows),
        "num_items_in_batch": mask.sum(),
    }
    lp = log_probs(trainer, inputs).detach()
    noise = torch.randn(2, rows, columns, generator=generator)
    inputs["ref_per_token_logps"] = lp + 0.5 * noise[0]
    inputs["old_per_token_logps"] = lp + 0.2 * noise[1]
    return inputs


def log_probs(trainer, inputs):
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    columns = inputs["completion_ids"].shape[1]
    return trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, columns)[0]


WEIGHTS = {
    "bnpo": lambda mask: mask / mask.sum(),
    "grpo": lambda mask: mask / mask.sum(-1, keepdim=True) / len(mask),
}


BY_SEQUENCE = {"importance_sampling_level": "sequence"}


@pytest.mark.skipif(not CORRECTS, reason="this TRL multiplies with no ratio")
@pytest.mark.parametrize(
    ("corrected", "options", "loss_type", "penalty"),
    [
        (False, {}, "bnpo", Penalty("k3", beta=BETA)),
        (False, {}, "grpo", Penalty("k3", beta=BETA)),
        (True, {}, "bnpo", Penalty("k3", ratio="differentiated", beta=BETA)),
        (True, {}, "grpo", Penalty("k3", ratio="differentiated", beta=BETA)),
        (False, BY_SEQUENCE, "grpo", Penalty("k3", beta=BETA)),
        (
            True,
            BY_SEQUENCE,
            "grpo",
            Penalty("k3", ratio="differentiated", level="geometric", beta=BETA),
        ),
    ],
)
def test_grpos_kl_term_has_the_gradient_of_its_coefficients(
    make_trainer, corrected, options, loss_type, penalty
):
    options = options | {"use_bias_correction_kl": corrected}
    trainer = make_trainer(1, beta=BETA, loss_type=loss_type, **options)
    read = penalty_of(trainer, "batch")
    assert read.penalties == {"policy_ref": penalty}
    assert ("1 / the length" in read.why) == (loss_type == "grpo")
    trainer.model.double().eval()
    trainer.current_gradient_accumulation_steps = 1
    inputs = batch_of(trainer)
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    loss = trainer._compute_loss(trainer.model, inputs)
    expected = torch.autograd.grad(loss, parameters)
    lp = log_probs(trainer, inputs)
    d = inputs["ref_per_token_logps"] - lp.detach()
    log_ratio = lp.detach() - inputs["old_per_token_logps"]
    c = penalty.coefficient(d, log_ratio, inputs["completion_mask"])
    weight = WEIGHTS[loss_type](inputs["completion_mask"].double())
    found = torch.autograd.grad(lp, parameters, penalty.beta * c * weight)
    scale = torch.stack([g.norm() for g in expected]).norm()
    assert scale > 1e-6
    off = torch.stack([(a - b).norm() for a, b in zip(found, expected, strict=True)]).norm()
    assert off < 1e-5 * scale


def test_rloos_advantages_are_the_coefficients_of_its_term(make_trainer):
    """A reward of 0 leaves -beta (S_i - the mean of the prompt's others)."""
    from transformers import AutoTokenizer

    base = make_trainer(1)
    if not hasattr(RLOOTrainer, GENERATE):
        pytest.skip("this RLOO is not a GRPO trainer's sibling")
    path = base.model.config._name_or_path
    trainer = RLOOTrainer(
        model=path,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=RLOOConfig(
            output_dir=base.args.output_dir, per_device_train_batch_size=16, num_generations=8,
            max_completion_length=8, max_steps=1, beta=BETA, use_cpu=True, bf16=False,
            normalize_advantages=False, report_to="none", learning_rate=1e-2,
        ),
        train_dataset=tiny.prompts(16),
        processing_class=AutoTokenizer.from_pretrained(path, padding_side="left"),
    )  # fmt: skip
    with torch.no_grad():  # away from its reference, or every KL is 0
        for parameter in trainer.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    handle = attach(trainer, run_dir=False)
    assert "rho(sequence)*k1 in the sequence's return" in handle.describe()
    seen, kept, reports = [], [], []
    compute, observe, step = trainer._compute_loss, handle.monitor.observe, handle.monitor.step
    handle.monitor.step = lambda *a, **k: reports.append(step(*a, **k)) or reports[-1]
    trainer._compute_loss = lambda model, inputs: seen.append(inputs) or compute(model, inputs)
    handle.monitor.observe = lambda **given: kept.append(given) or observe(**given)
    trainer.train()
    (penalty,) = penalty_of(trainer, "batch").penalties.values()
    prompt = torch.cat([one["prompt_ids"] for one in kept]).argsort(stable=True)
    old, ref, mask, advantages = (
        torch.cat(x)[prompt].double()
        for x in (
            [one["old"] for one in kept],
            [one["ref"] for one in kept],
            [one["mask"] for one in kept],
            [one["advantages"] for one in seen],
        )
    )
    c = penalty.coefficient(ref - old, None, mask)
    expected = -advantages[:, None] * mask / BETA
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(c, expected, rtol=1e-4, atol=1e-5)
    pair = reports[0].pairs["old_ref"]  # its rows came shuffled
    assert pair["penalty/pull"] == pytest.approx(BETA * float(c.sum() / mask.sum()), rel=1e-4)
    assert pair["penalty/effective_beta_se"] > 0
    handle.detach()


def test_the_receipt_of_a_run_and_its_words(watch):
    """TRL's default on fresh samples: the reverse KL's gradient exactly, in the tokens too."""
    options = {"use_bias_correction_kl": True} if CORRECTS else {}
    run = watch(steps=4, beta=BETA, loss_type="bnpo", **options)
    pair = run.reports["train", 4].pairs["policy_ref"]
    assert pair["penalty/beta"] == BETA
    assert run.handle.monitor.errors == 0
    term = "rho*k3 in the loss, rho differentiated" if CORRECTS else "k3 in the loss"
    assert f"penalty policy_ref: 0.04 x {term}" in run.handle.describe()
    assert f"the KL term is 0.04 x {term}" in run.reports["train", 4].explain()
    if CORRECTS:
        assert pair["penalty/effective_beta"] == pytest.approx(BETA, rel=1e-9)
        assert pair["penalty/pull"] == pytest.approx(BETA * pair.k1.mean, rel=1e-9)
    assert "kl/policy_ref/penalty/effective_beta" in run.rows[4]


def test_the_users_own_penalty_comes_first(make_trainer):
    trainer = make_trainer(1, beta=BETA)
    handle = attach(trainer, run_dir=False, penalty=Penalty("k2", beta=0.5))
    assert "penalty policy_ref: 0.5 x k2 in the loss" in handle.describe()
    assert handle.monitor.penalties == {"policy_ref": Penalty("k2", beta=0.5)}
    handle.detach()


def test_what_is_not_known_is_said(make_trainer):
    class Own(GRPOTrainer):
        def _compute_loss(self, model, inputs):
            return super()._compute_loss(model, inputs)

    class Tame(GRPOTrainer):
        def log(self, *args, **kwargs):
            return super().log(*args, **kwargs)

    own = make_trainer(1, beta=BETA, trainer_class=Own)
    assert penalty_of(own, "batch").penalties == {}
    handle = attach(own, run_dir=False)
    assert "penalty not read: Own._compute_loss is not TRL's own" in handle.describe()
    handle.detach()
    assert penalty_of(make_trainer(1, beta=BETA, trainer_class=Tame), "batch").penalties
    without = penalty_of(make_trainer(1, beta=0.0), "batch")
    assert without.penalties == {}
    assert without.why == "the objective has no KL term"
    assert "no KL term" in penalty_of(own, "pairwise").why


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_ppo_is_read_from_its_arguments(estimator):
    trainer = SimpleNamespace(args=SimpleNamespace(kl_coef=0.05, kl_estimator=estimator))
    read = penalty_of(trainer, "monolith")
    (penalty,) = read.penalties.values()
    assert (penalty.estimator, penalty.returns, penalty.beta) == (estimator, "to_go", 0.05)
    assert read.why == "in expectation: GAE and the value are not modelled"
    trainer.args.kl_coef = 0.0
    assert penalty_of(trainer, "monolith").penalties == {}


def test_a_clamp_of_a_users_own_loss_is_the_penalty_that_they_give(make_trainer):
    """The demo's trainer: its gradient is that of the term which the demo tells of."""
    from klmonitor_trl.demo.clamped import clamped

    trainer = make_trainer(1, beta=BETA, loss_type="bnpo", trainer_class=clamped(0.1))
    assert penalty_of(trainer, "batch").penalties == {}
    trainer.model.double().eval()
    trainer.current_gradient_accumulation_steps = 1
    inputs = batch_of(trainer)
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    expected = torch.autograd.grad(trainer._compute_loss(trainer.model, inputs), parameters)
    lp, mask = log_probs(trainer, inputs), inputs["completion_mask"]
    c = Penalty("k3", clamp=0.1).coefficient(inputs["ref_per_token_logps"] - lp.detach(), mask=mask)
    assert 0 < ((c == 0) & (mask != 0)).sum() < mask.sum()
    found = torch.autograd.grad(lp, parameters, BETA * c * mask.double() / mask.sum())
    scale = torch.stack([g.norm() for g in expected]).norm()
    off = torch.stack([(a - b).norm() for a, b in zip(found, expected, strict=True)]).norm()
    assert off < 1e-5 * scale


def test_the_receipt_of_reused_samples_is_that_of_every_token(watch):
    """A second pass over the same samples: ratios, advantages and a sequence's level enter."""
    options = {"use_bias_correction_kl": True, **BY_SEQUENCE} if CORRECTS else {}
    run = watch(
        steps=4, beta=2.0, loss_type="bnpo", num_iterations=2, learning_rate=3e-3, **options
    )
    (penalty,) = run.handle.monitor.penalties.values()
    pair = run.reports["train", 4].pairs["policy_ref"]
    assert pair["on_policy"] == 0
    batches = run.batches["train", 4]
    lp, old, ref = (torch.cat([b[n] for b in batches]).double() for n in ("policy", "old", "ref"))
    mask = torch.cat([b["mask"] for b in batches]) != 0
    advantages = torch.cat([b["advantages"] for b in batches]).double()[:, None]
    c, w = penalty.coefficient(ref - lp, lp - old, mask), (lp - old).exp()
    reward = (advantages * w)[mask]
    x, y, w = (lp - ref)[mask], c[mask] / w[mask], w[mask]
    design = torch.stack([torch.ones_like(x), x], 1)
    slope = torch.linalg.solve(design.T @ (w[:, None] * design), design.T @ (w * y))[1]
    assert pair["penalty/effective_beta"] == pytest.approx(2 * float(slope), rel=1e-6)
    pull, rewarded = 2 * c[mask], reward != 0
    overruled = (pull * reward > 0) & (pull.abs() > reward.abs())
    assert rewarded.any()
    share = int(overruled.sum()) / int(rewarded.sum())
    assert pair["penalty/overruled"] == pytest.approx(share, rel=1e-9)
    assert run.handle.monitor.errors == 0
