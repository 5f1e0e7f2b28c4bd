"""OpenRLHF's objective, as its arguments tell it: its KL term, the range it clips ratios to.

The term is `openrlhf.models.utils.compute_approx_kl`: with d = log ref - log policy, k1 is -d, k2
d^2 / 2, k3 expm1(d) - d, each value clamped to +-10 nats. In the reward it is charged to its token
and, as every estimator of advantages sums rewards from a token on, to those before it; the baseline
of a group is taken off the reward alone, before the KL. In the loss its gradient is its own, or
with ``unbiased_gradient`` (0.11) that of k2 times the policy's ratio to old, whatever its value.
"""

from __future__ import annotations

import math
from typing import Any

from klmonitor.hooks.objective import Objective, PenaltyRead, Range
from klmonitor.penalty import Penalty
from klmonitor_openrlhf.settings import at

ESTIMATORS = ("k1", "k2", "k3")
CLAMP = 10.0
"""Nats to which the value of the term is clamped; also the ratio of ``unbiased_gradient``."""
SUMMED = ("reinforce", "rloo", "reinforce_baseline", "group_norm", "dr_grpo", "flash_reinforce")
"""Estimators of advantages that are the sum of rewards from a token on; ``gae`` is nearly."""
WHITENED = ("gae", "reinforce", "reinforce_baseline")
"""Those that are divided by the batch's deviation at the end."""


def penalty_of(args: Any) -> PenaltyRead:
    """The KL term of a run: in the loss on `policy_ref`, or in the reward on `old_ref`.

    Args:
        args: OpenRLHF's arguments, as its trainer holds them.
    """
    beta = float(at(args, "beta", 0.0))
    if beta <= 0:
        return PenaltyRead(why="the objective has no KL term: its coefficient is 0")
    estimator = str(at(args, "estimator", "k1"))
    if estimator not in ESTIMATORS:
        return PenaltyRead(why=f"kl.estimator {estimator} is not read; give klmonitor.penalty")
    read = _in_loss if at(args, "use_loss") else _in_reward
    term, notes = read(args, estimator, beta)
    pair = "policy_ref" if read is _in_loss else "old_ref"
    if at(args, "target"):
        notes.append(f"kl.target is set: beta is {beta:g} at the start alone")
    return PenaltyRead({} if term is None else {pair: term}, "; ".join(notes))


def objective_of(args: Any) -> Objective:
    """What the clip range and the weight of a KL term in the loss let a pair's sums tell."""
    bounds, dual = _clip(at(args, "clip")), at(args, "dual_clip")
    plain = bounds is not None and at(args, "loss", "ppo") == "ppo"
    ranges = {"old_policy": bounds} if plain and bounds is not None else {}
    term = penalty_of(args).penalties.get("policy_ref")
    if term is None:
        return Objective(ranges=ranges, bounded=plain and dual is not None)
    weights = {"policy_ref": term.estimator}
    return Objective(term.beta, weights, ranges, bounded=plain and dual is not None)


def _in_loss(args: Any, estimator: str, beta: float) -> tuple[Penalty | None, list[str]]:
    if not at(args, "unbiased"):
        return Penalty(estimator, clamp=CLAMP, beta=beta), []
    term = Penalty(estimator, ratio="detached", straight_through=True, clamp=CLAMP, beta=beta)
    return term, [f"the ratio is cut at {CLAMP:g}: not modelled"]


def _in_reward(args: Any, estimator: str, beta: float) -> tuple[Penalty | None, list[str]]:
    advantage = str(at(args, "advantage", "gae"))
    if advantage not in (*SUMMED, "gae"):
        return None, [f"advantage.estimator {advantage} is not read; give klmonitor.penalty"]
    notes = []
    if advantage == "gae":
        notes.append("in expectation: GAE and the value are not modelled")
    if advantage in WHITENED:
        notes.append(f"{advantage} divides by the advantages' deviation, beta too: not modelled")
    if advantage in ("gae", "reinforce") and float(at(args, "gamma", 1.0)) != 1:
        notes.append("gamma discounts: not modelled")
    if at(args, "correction_level", "off") != "off" or at(args, "correction"):
        notes.append("the correction weighs tokens by policy over rollout: not modelled")
    term = Penalty(
        estimator,
        placed="reward",
        ratio="differentiated",
        returns="to_go",
        clamp=CLAMP,
        beta=beta,
    )
    return term, notes


def _clip(both: Any) -> Range | None:
    """Log ratios beyond which OpenRLHF clips."""
    if both is None or len(both) != 2:
        return None
    low, high = both
    return (math.log1p(-low) if low < 1 else -math.inf), math.log1p(high)
