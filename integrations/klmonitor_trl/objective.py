"""The objective of TRL's trainers, as far as their attributes tell it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from klmonitor.hooks.objective import Objective, Range
from klmonitor_trl.names import derives_from, is_rloo


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
    )


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
