"""OpenRLHF's arguments read as terms, against its own functions where they are there."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from klmonitor.penalty import Penalty
from klmonitor_openrlhf.objective import objective_of, penalty_of
from klmonitor_openrlhf.settings import Settings, at, set_at


def nested(**given):
    """Arguments as 0.10 and newer hold them: ``algo__kl__use_loss=True``."""
    root = SimpleNamespace()
    standard = {"algo__kl__init_coef": 0.05, "algo__kl__estimator": "k1", "algo__kl__target": None}
    for name, value in {**standard, **given}.items():
        *folders, last = name.split("__")
        owner = root
        for key in folders:
            if not hasattr(owner, key):
                setattr(owner, key, SimpleNamespace())
            owner = getattr(owner, key)
        setattr(owner, last, value)
    return root


def flat(**given):
    """Arguments as 0.9 holds them."""
    standard = {"init_kl_coef": 0.05, "kl_estimator": "k1", "kl_target": None}
    return SimpleNamespace(**{**standard, **given})


def test_none_is_said():
    assert "coefficient is 0" in penalty_of(nested(algo__kl__init_coef=0.0)).why
    assert penalty_of(flat(init_kl_coef=0)).penalties == {}


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_a_term_in_the_loss(estimator):
    wanted = {"policy_ref": Penalty(estimator, clamp=10.0, beta=0.05)}
    new = nested(algo__kl__use_loss=True, algo__kl__estimator=estimator)
    assert penalty_of(new).penalties == wanted
    assert penalty_of(flat(use_kl_loss=True, kl_estimator=estimator)).penalties == wanted
    assert objective_of(new).penalised == {"policy_ref": estimator}


def test_an_unbiased_gradient():
    read = penalty_of(nested(algo__kl__use_loss=True, algo__kl__unbiased_gradient=True))
    term = read.penalties["policy_ref"]
    assert term == Penalty("k1", ratio="detached", straight_through=True, clamp=10, beta=0.05)
    assert "the reverse KL's gradient" in str(term)


@pytest.mark.parametrize(
    ("advantage", "said"),
    [
        ("gae", "GAE"),
        ("reinforce", "deviation"),
        ("rloo", ""),
        ("reinforce_baseline", "deviation"),
        ("group_norm", ""),
        ("dr_grpo", ""),
        ("flash_reinforce", ""),
    ],
)
def test_a_term_in_the_reward(advantage, said):
    wanted = Penalty("k1", "reward", "differentiated", beta=0.05, returns="to_go", clamp=10.0)
    for read in (
        penalty_of(nested(algo__advantage__estimator=advantage)),
        penalty_of(flat(advantage_estimator=advantage)),
    ):
        assert read.penalties == {"old_ref": wanted}
        assert said in read.why
        assert bool(read.why) == bool(said)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"algo__kl__target": 6.0}, "at the start alone"),
        ({"algo__advantage__gamma": 0.9, "algo__advantage__estimator": "reinforce"}, "gamma"),
        ({"algo__advantage__is_correction_level": "seq"}, "correction"),
        ({"algo__advantage__is_correction_enable": True}, "correction"),
    ],
)
def test_what_the_receipt_leaves_out_is_said(given, said):
    assert said in penalty_of(nested(**given)).why


@pytest.mark.parametrize(
    "given", [{"algo__kl__estimator": "k4"}, {"algo__advantage__estimator": "theirs"}]
)
def test_what_is_not_known_is_said_and_not_guessed_at(given):
    read = penalty_of(nested(**given))
    assert read.penalties == {}
    assert "not read" in read.why


def test_the_clip_range():
    bounds = {"actor__eps_clip_low_high": (0.2, 0.28)}
    found = objective_of(nested(**bounds))
    assert found.ranges == {"old_policy": pytest.approx((math.log(0.8), math.log(1.28)))}
    assert not found.bounded
    assert objective_of(nested(**bounds, actor__dual_clip=3.0)).bounded
    assert objective_of(nested(**bounds, actor__policy_loss_type="gspo")).ranges == {}
    old = objective_of(flat(eps_clip_low_high=[0.2, 0.2], policy_loss_type="ppo"))
    assert old.ranges == {"old_policy": pytest.approx((math.log(0.8), math.log(1.2)))}


def test_settings():
    new = Settings.read(
        nested(
            algo__kl__use_loss=True,
            algo__advantage__is_correction_level="token",
            ds__ring_attn_size=2,
            ds__tensor_parallel_size=2,
            rollout__n_samples_per_prompt=4,
            rollout__batch_size=8,
            train__batch_size=16,
            train__max_epochs=3,
            ckpt__output_dir="out",
        )
    )
    assert (new.rollout, new.reference, new.in_loss, new.copies) == (True, True, True, 4)
    assert (new.updates_a_step, new.output_dir, new.logging_steps) == (6, "out", 1)
    old = Settings.read(flat(enable_vllm_is_correction=False, save_path="out", init_kl_coef=0))
    assert (old.rollout, old.reference, old.copies, old.output_dir) == (False, False, 1, "out")
    assert old.to_get_rollout == "--enable_vllm_is_correction"
    middle = Settings.read(nested(algo__advantage__is_correction_enable=True))
    assert middle.rollout
    assert middle.to_get_rollout == "--algo.advantage.is_correction_enable"
    assert math.isnan(old.updates_a_step)


def test_an_argument_is_set_where_it_is():
    for args in (nested(ckpt__save_steps=5), flat(save_steps=5)):
        set_at(args, "save_steps", 1)
        assert at(args, "save_steps") == 1


# --- against its own functions ------------------------------------------------------------------
D = (-30.0, -12.0, -5.0, -0.3, -1e-3, 2e-3, 0.4, 2.0, 2.3, 3.0, 9.0, 25.0)


@pytest.mark.openrlhf
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_a_terms_pull_is_the_gradient_of_openrlhfs_own(estimator, openrlhf):
    from openrlhf.models.utils import compute_approx_kl

    read = penalty_of(nested(algo__kl__use_loss=True, algo__kl__estimator=estimator))
    d = torch.tensor(D)
    log_policy = torch.full_like(d, -2.0).requires_grad_()
    compute_approx_kl(log_policy, d - 2.0, kl_estimator=estimator).sum().backward()
    term = read.penalties["policy_ref"]
    torch.testing.assert_close(term.coefficient(d), log_policy.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.openrlhf
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_unbiased_gradient_is_that_of_openrlhfs_own(estimator, openrlhf):
    import inspect

    from openrlhf.models.utils import compute_approx_kl

    if "unbiased_gradient" not in inspect.signature(compute_approx_kl).parameters:
        pytest.skip("this OpenRLHF has no unbiased_gradient")
    args = nested(
        algo__kl__use_loss=True, algo__kl__estimator=estimator, algo__kl__unbiased_gradient=True
    )
    d = torch.tensor(D)
    log_ratio = torch.linspace(-1, 2, len(D))
    log_policy = torch.full_like(d, -2.0).requires_grad_()
    old = log_policy.detach() - log_ratio
    compute_approx_kl(
        log_policy, d - 2.0, log_probs_old=old, kl_estimator=estimator, unbiased_gradient=True
    ).sum().backward()
    term = penalty_of(args).penalties["policy_ref"]
    torch.testing.assert_close(
        term.coefficient(d, log_ratio), log_policy.grad, rtol=1e-5, atol=1e-6
    )


@pytest.mark.openrlhf
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_a_term_in_the_reward_is_what_openrlhf_takes_off_the_returns(estimator, openrlhf):
    from openrlhf.models.utils import compute_approx_kl, compute_reward
    from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

    generator = torch.Generator().manual_seed(3)
    old = -3 * torch.rand(4, 12, generator=generator)
    d = 4 * torch.randn(4, 12, generator=generator)
    mask = torch.arange(12)[None] < torch.tensor([12, 5, 1, 8])[:, None]
    kl = compute_approx_kl(old, old + d, kl_estimator=estimator)
    reward = compute_reward(torch.zeros(4), 0.05, kl, action_mask=mask)
    returns = RemoteExperienceMaker.get_cumulative_returns(None, reward, mask, 1.0)
    term = penalty_of(
        nested(algo__advantage__estimator="group_norm", algo__kl__estimator=estimator)
    ).penalties["old_ref"]
    pull = 0.05 * term.coefficient(d, mask=mask)
    torch.testing.assert_close(pull, torch.where(mask, -returns, 0.0), rtol=1e-5, atol=1e-6)
