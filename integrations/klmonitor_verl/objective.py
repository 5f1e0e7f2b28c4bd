"""verl's objective, as its configuration tells it: its KL terms, the range it clips ratios to.

A KL term is one of `verl.trainer.ppo.core_algos.kl_penalty`: with d = log ref - log policy, ``kl``
(``k1``) is -d, ``abs`` |d|, ``mse`` (``k2``) d^2 / 2, ``low_var_kl`` (``k3``) expm1(d) - d with d
clamped to 20 and the value to 10; a ``+`` after it makes the gradient k2's.
"""

from __future__ import annotations

import math
from typing import Any

from klmonitor.hooks.objective import Objective, PenaltyRead, Range
from klmonitor.penalty import Penalty
from klmonitor_verl.settings import Config, at

ESTIMATORS = {
    "kl": "k1",
    "k1": "k1",
    "abs": "abs",
    "mse": "k2",
    "k2": "k2",
    "low_var_kl": "k3",
    "k3": "k3",
}
"""verl's name of a term -> the estimator."""
CLAMP, CLAMP_D = 10.0, 20.0
"""Nats to which ``low_var_kl``'s value and d are clamped."""
RETURNS = {
    "gae": "to_go",
    "reinforce_plus_plus": "to_go",
    "grpo": "sequence",
    "rloo": "sequence",
    "remax": "sequence",
}
"""Advantage estimator -> the rewards that a token's action is charged with."""
ACTOR = "actor_rollout_ref.actor"
CLIPPING = ("vanilla", "bypass_mode")
"""Policy losses that clip a token's ratio to the range of the configuration."""


def penalty_of(config: Config) -> PenaltyRead:
    """The KL terms of a run: in the loss on `policy_ref`, in the reward on `old_ref`, or both.

    Args:
        config: verl's whole configuration as plain tables.
    """
    found: dict[str, Penalty] = {}
    why = []
    if at(config, f"{ACTOR}.use_kl_loss"):
        term, note = _in_loss(config)
        found |= {} if term is None else {"policy_ref": term}
        why.append(note)
    if at(config, "algorithm.use_kl_in_reward"):
        term, note = _in_reward(config)
        found |= {} if term is None else {"old_ref": term}
        why.append(note)
    if not why:
        return PenaltyRead(why="the objective has no KL term")
    return PenaltyRead(found, "; ".join(note for note in why if note))


def objective_of(config: Config) -> Objective:
    """What the clip range and the weight of the KL term in the loss let a pair's sums tell."""
    ranges = {}
    mode = str(at(config, f"{ACTOR}.policy_loss.loss_mode", "vanilla"))
    bounds = _clip(config)
    if mode in CLIPPING and bounds is not None:
        bypass = at(config, "algorithm.rollout_correction.bypass_mode")
        ranges["rollout_policy" if bypass else "old_policy"] = bounds
    term = penalty_of(config).penalties.get("policy_ref")
    if term is None or term.estimator not in ("k1", "k2", "k3"):
        return Objective(ranges=ranges)
    return Objective(term.beta, {"policy_ref": term.estimator}, ranges)


def _in_loss(config: Config) -> tuple[Penalty | None, str]:
    kind = str(at(config, f"{ACTOR}.kl_loss_type", "low_var_kl"))
    beta = float(at(config, f"{ACTOR}.kl_loss_coef", 0.0) or 0.0)
    given, why = _estimator(kind, f"{ACTOR}.kl_loss_type")
    if given is None or not beta:
        return None, why or "the KL term of the loss weighs 0"
    mode = str(at(config, f"{ACTOR}.loss_agg_mode", "token-mean"))
    weighs = f"loss_agg_mode {mode} weighs tokens unevenly, penalty/* all alike"
    straight = kind.endswith("+") and given["estimator"] != "k2"  # of k2 it is k2's own
    note = "" if mode == "token-mean" else weighs
    return Penalty(placed="loss", beta=beta, straight_through=straight, **given), note


def _in_reward(config: Config) -> tuple[Penalty | None, str]:
    kind = str(at(config, "algorithm.kl_penalty", "kl"))
    given, why = _estimator(kind, "algorithm.kl_penalty")
    beta = float(at(config, "algorithm.kl_ctrl.kl_coef", 0.001) or 0.0)
    estimator = at(config, "algorithm.adv_estimator", "gae")
    estimator = str(getattr(estimator, "value", estimator))  # an enumeration's, or a string
    if given is None or not beta:
        return None, why or "the KL term of the reward weighs 0"
    if estimator not in RETURNS:
        return None, f"adv_estimator {estimator} is not read; give klmonitor.penalty"
    notes = []
    others = int(at(config, "actor_rollout_ref.rollout.n", 1)) if estimator == "rloo" else 0
    if estimator == "grpo":
        scaled = at(config, "algorithm.norm_adv_by_std_in_grpo", True)
        divided = " and divides beta by the returns' deviation" if scaled else ""
        notes.append(f"GRPO takes the mean of the prompt's returns off{divided}: not modelled")
    elif estimator == "gae":
        notes.append("in expectation: GAE and the value are not modelled")
    elif estimator == "reinforce_plus_plus":
        notes.append("REINFORCE++ whitens the advantages: not modelled")
    if str(at(config, "algorithm.kl_ctrl.type", "fixed")) == "adaptive":
        notes.append(f"kl_ctrl is adaptive: beta is {beta:g} at the start alone")
    term = Penalty(
        placed="reward",
        ratio="differentiated",
        returns=RETURNS[estimator],
        leave_one_out=others if others > 1 else 0,
        beta=beta,
        **given,
    )
    return term, "; ".join(notes)


def _estimator(kind: str, where: str) -> tuple[dict[str, Any] | None, str]:
    """The fields of `Penalty` that a term's name decides; None, and why, if it is unknown."""
    name = ESTIMATORS.get(kind.removesuffix("+"))
    if name is None:
        return None, f"{where} {kind} is not read; give klmonitor.penalty"
    clamps = {"clamp": CLAMP, "clamp_d": CLAMP_D} if name == "k3" else {}
    return {"estimator": name, **clamps}, ""


def _clip(config: Config) -> Range | None:
    """Log ratios beyond which verl clips, of its vanilla loss."""
    both = at(config, f"{ACTOR}.clip_ratio")
    low = at(config, f"{ACTOR}.clip_ratio_low", both)
    high = at(config, f"{ACTOR}.clip_ratio_high", both)
    low, high = (both if x is None else x for x in (low, high))
    if low is None or high is None:
        return None
    return (math.log1p(-low) if low < 1 else -math.inf), math.log1p(high)
