"""The objective of TRL's trainers, as far as their attributes tell it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from klmonitor.hooks.objective import Objective, PenaltyRead, Range
from klmonitor.penalty import Penalty
from klmonitor_trl.names import GENERATE, derives_from, is_rloo

LOSSES = ("_compute_loss", "compute_loss")
"""TRL's functions that put a KL term into the loss."""
THEIRS = ("trl", "transformers")
"""Packages whose objectives are known."""
UNEVEN = {
    "grpo": "by 1 / the length of its sequence",
    "sapo": "by 1 / the length of its sequence",
    "luspo": "by 1 / the number of sequences",
    "dr_grpo": "by 1 / (sequences x max_completion_length)",
}
"""``loss_type`` -> how it weighs a token, where that is not by 1 / the number of tokens."""


def objective_of(trainer: Any, kind: str) -> Objective:
    """The objective of a trainer of a kind of `kinds`; empty where TRL's attributes are absent."""
    if kind == "batch":
        return _of_batch(trainer)
    if kind == "packed":
        return Objective(ranges=_named({"rollout_policy": _clip(trainer)}))
    if kind == "monolith":
        args = trainer.args
        estimator = "k3" if getattr(args, "kl_estimator", "k1") == "k3" else "k1"
        return Objective(float(getattr(args, "kl_coef", 0.0)), {"old_ref": estimator})
    return Objective()


def beta_of(trainer: Any, kind: str) -> float | None:
    """The coefficient of the KL penalty as it is now, None where the objective has none of its own.

    The ``beta`` of OnlineDPO and its kin is that of the preference loss.
    """
    if kind == "pairwise":
        return None
    owner, name = (trainer.args, "kl_coef") if kind == "monolith" else (trainer, "beta")
    found = getattr(owner, name, None)
    return None if found is None else float(found)


def penalty_of(trainer: Any, kind: str) -> PenaltyRead:
    """The KL term of a trainer of a kind of `kinds`, as its attributes tell it.

    A loss or a generation that a class outside TRL has replaced is not guessed at.
    """
    if kind == "monolith":
        return _of_monolith(trainer)
    if kind == "pairwise":
        return PenaltyRead(why="beta is within the preference loss, which has no KL term")
    beta = float(getattr(trainer, "beta", 0.0) or 0.0)
    if kind == "packed" or not beta:
        return PenaltyRead(why="the objective has no KL term")
    replaced = _replaced(trainer)
    if replaced:
        return PenaltyRead(why=f"{replaced} is not TRL's own; give attach(penalty=...)")
    return _of_rloo(trainer, beta) if is_rloo(trainer) else _of_grpo(trainer, beta)


def _replaced(trainer: Any) -> str:
    """The function of the objective that is not one of TRL's, empty: there is none."""
    for name in (*LOSSES, GENERATE):
        owner = next((base for base in type(trainer).__mro__ if name in vars(base)), None)
        if owner is not None and owner.__module__.partition(".")[0] not in THEIRS:
            return f"{owner.__name__}.{name}"
    return ""


def _of_grpo(trainer: Any, beta: float) -> PenaltyRead:
    if getattr(trainer, "use_liger_loss", False) or getattr(trainer, "use_liger_kernel", False):
        return PenaltyRead(why="Liger's fused loss is not read; give attach(penalty=...)")
    level = getattr(trainer, "importance_sampling_level", "token")
    corrected = getattr(trainer.args, "use_bias_correction_kl", False)
    if corrected and not derives_from(trainer, "GMPOTrainer"):
        where = "token" if level == "token" else "geometric"
        penalty = Penalty("k3", ratio="differentiated", level=where, beta=beta)
    else:
        penalty = Penalty("k3", beta=beta)
    loss_type = getattr(trainer, "loss_type", "grpo")
    weight = UNEVEN.get(loss_type)
    note = f"loss_type {loss_type} weighs a token {weight}, penalty/* all alike" if weight else ""
    return PenaltyRead({"policy_ref": penalty}, note)


def _of_rloo(trainer: Any, beta: float) -> PenaltyRead:
    penalty = Penalty(
        "k1",
        "reward",
        ratio="differentiated",
        level="sequence",
        returns="sequence",
        leave_one_out=int(trainer.num_generations),
        beta=beta,
    )
    normalised = getattr(trainer, "normalize_advantages", False)
    note = "normalize_advantages divides beta by the advantages' deviation" if normalised else ""
    return PenaltyRead({"old_ref": penalty}, note)


def _of_monolith(trainer: Any) -> PenaltyRead:
    if is_rloo(trainer):
        return PenaltyRead(why="TRL's first RLOO is not read; give attach(penalty=...)")
    beta = float(getattr(trainer.args, "kl_coef", 0.0))
    if not beta:
        return PenaltyRead(why="the objective has no KL term")
    estimator = "k3" if getattr(trainer.args, "kl_estimator", "k1") == "k3" else "k1"
    penalty = Penalty(estimator, "reward", ratio="differentiated", returns="to_go", beta=beta)
    return PenaltyRead({"old_ref": penalty}, "in expectation: GAE and the value are not modelled")


def _of_batch(trainer: Any) -> Objective:
    beta = float(getattr(trainer, "beta", 0.0) or 0.0)
    if is_rloo(trainer):
        return Objective(beta, {"old_ref": "k1"})
    tokens = getattr(trainer, "importance_sampling_level", "token") == "token"
    weighted = getattr(trainer.args, "use_bias_correction_kl", False)
    reuses = trainer.args.gradient_accumulation_steps % _updates(trainer.args) != 0
    return Objective(
        beta,
        # The corrected penalty is k3 times the ratio to the sampler: k3 itself only without one.
        {} if weighted and reuses else {"policy_ref": "k3"},
        _named({"old_policy": _clip(trainer) if tokens else None, "rollout_old": _engine(trainer)}),
        bounded=not tokens or _bounded(trainer.args),
    )


def _bounded(args: Any) -> bool:
    """Whether no ratio enters the loss beyond a bound, also where the advantage is negative."""
    loss = str(getattr(args, "loss_type", "grpo"))
    return getattr(args, "delta", None) is not None or loss in ("cispo", "sapo")


def _updates(args: Any) -> int:
    """Micro-batches that are trained on one generation."""
    per_batch = getattr(args, "steps_per_generation", None) or 1
    return int(per_batch * (getattr(args, "num_iterations", None) or 1))


def _clip(trainer: Any) -> Range | None:
    """The clip range of the policy's ratio to the sampler."""
    low, high = (getattr(trainer, name, None) for name in ("epsilon_low", "epsilon_high"))
    if low is None or high is None:
        return None
    if derives_from(trainer, "GMPOTrainer"):
        return -low, high  # clips the logarithm itself
    return (math.log1p(-low) if low < 1 else -math.inf), math.log1p(high)


def _engine(trainer: Any) -> Range | None:
    """The range that the ratio of trainer and engine is truncated to, token by token."""
    mode = str(getattr(trainer, "vllm_importance_sampling_mode", "token"))
    low = getattr(trainer, "vllm_importance_sampling_clip_min", None)
    high = getattr(trainer, "vllm_importance_sampling_clip_max", None)
    if high is None:
        high = getattr(trainer, "vllm_importance_sampling_cap", None)
    if not mode.startswith("token") or not getattr(trainer, "use_vllm", False):
        return None
    return (math.log(low) if low else -math.inf), (math.log(high) if high else math.inf)


def _named(ranges: Mapping[str, Range | None]) -> dict[str, Range]:
    return {pair: found for pair, found in ranges.items() if found is not None}
