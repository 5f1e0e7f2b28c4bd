"""verl's options read as terms, against the gradient of verl's own function where it is there."""

from __future__ import annotations

import math

import pytest
import torch

from klmonitor.penalty import Penalty
from klmonitor_verl.objective import objective_of, penalty_of
from klmonitor_verl.settings import Settings, at

KINDS = ("kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3")


def config(actor=None, algorithm=None, n=1):
    return {
        "actor_rollout_ref": {
            "actor": {"clip_ratio": 0.2, "kl_loss_coef": 0.01, **(actor or {})},
            "rollout": {"n": n, "calculate_log_probs": True},
        },
        "algorithm": {"adv_estimator": "grpo", "kl_ctrl": {"kl_coef": 0.05}, **(algorithm or {})},
    }


def test_none_is_said():
    assert penalty_of(config()).why == "the objective has no KL term"
    assert penalty_of({}).penalties == {}


def test_a_term_in_the_loss():
    read = penalty_of(config({"use_kl_loss": True, "kl_loss_type": "low_var_kl"}))
    assert read.penalties == {"policy_ref": Penalty("k3", beta=0.01, clamp=10.0, clamp_d=20.0)}
    assert read.why == ""
    uneven = config({"use_kl_loss": True, "loss_agg_mode": "seq-mean-token-mean"})
    assert "seq-mean-token-mean" in penalty_of(uneven).why


@pytest.mark.parametrize(
    ("estimator", "returns", "others", "said"),
    [
        ("gae", "to_go", 0, "GAE"),
        ("grpo", "sequence", 0, "GRPO"),
        ("rloo", "sequence", 4, ""),
        ("reinforce_plus_plus", "to_go", 0, "whitens"),
    ],
)
def test_a_term_in_the_reward(estimator, returns, others, said):
    table = {"use_kl_in_reward": True, "kl_penalty": "kl", "adv_estimator": estimator}
    read = penalty_of(config(algorithm=table, n=4))
    assert read.penalties["old_ref"] == Penalty(
        "k1", "reward", "differentiated", beta=0.05, returns=returns, leave_one_out=others
    )
    assert said in read.why


def test_both_terms_at_once_and_an_adaptive_weight():
    algorithm = {
        "use_kl_in_reward": True,
        "kl_penalty": "k2",
        "kl_ctrl": {"type": "adaptive", "kl_coef": 0.2},
    }
    read = penalty_of(config({"use_kl_loss": True, "kl_loss_type": "mse"}, algorithm))
    assert set(read.penalties) == {"policy_ref", "old_ref"}
    assert "adaptive" in read.why


@pytest.mark.parametrize(
    ("actor", "algorithm"),
    [
        ({"use_kl_loss": True, "kl_loss_type": "full"}, {}),
        ({}, {"use_kl_in_reward": True, "kl_penalty": "theirs"}),
        ({}, {"use_kl_in_reward": True, "adv_estimator": "theirs"}),
    ],
)
def test_what_is_not_known_is_said_and_not_guessed_at(actor, algorithm):
    read = penalty_of(config(actor, algorithm))
    assert read.penalties == {}
    assert "not read" in read.why


@pytest.mark.verl
@pytest.mark.parametrize("suffix", ["", "+"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_terms_pull_is_the_gradient_of_verls_own(kind, suffix, verl):
    read = penalty_of(config({"use_kl_loss": True, "kl_loss_type": kind + suffix}))
    term = read.penalties["policy_ref"]
    d = torch.tensor([-30.0, -12.0, -5.0, -0.3, -1e-3, 2e-3, 0.4, 2.0, 3.0, 25.0]).double()
    log_policy = torch.full_like(d, -2.0).requires_grad_()
    try:
        value = verl.trainer.ppo.core_algos.kl_penalty(log_policy, d - 2.0, kind + suffix)
    except NotImplementedError:
        pytest.skip(f"this verl has no {kind + suffix}")
    value.sum().backward()
    torch.testing.assert_close(term.coefficient(d), log_policy.grad, rtol=1e-9, atol=1e-12)


def test_the_clip_range_is_of_the_pair_that_verl_clips():
    found = objective_of(config({"clip_ratio_low": 0.2, "clip_ratio_high": 0.28}))
    assert found.ranges == {"old_policy": pytest.approx((math.log(0.8), math.log(1.28)))}
    bypass = {"rollout_correction": {"bypass_mode": True}}
    assert set(objective_of(config({}, bypass)).ranges) == {"rollout_policy"}
    assert objective_of(config({"policy_loss": {"loss_mode": "gspo"}})).ranges == {}


def test_settings_and_notes():
    plain = Settings.read(config({"use_kl_loss": True}))
    assert (plain.bypass, plain.rollout, plain.reference, plain.notes) == ("", True, True, {})
    bypass = Settings.read(config(algorithm={"rollout_correction": {"bypass_mode": True}}))
    assert "bypass_mode" in bypass.notes["old_ref"]
    assert not bypass.reference
    assert at({"a": {"b": 1}}, "a.b.c", 5) == 5
