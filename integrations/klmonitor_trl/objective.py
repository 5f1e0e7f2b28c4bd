"""What the trainer's own objective does with the ratios: the penalty it pays, the range it clips.

TRL logs the clamped side of both: a ratio beyond the range counts as clipped only if the advantage
has the right sign, and a jump of the penalty shows in the loss alone. Here are the raw numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from klmonitor.numbers.buckets import Array
from klmonitor.numbers.statistics import below
from klmonitor_trl.names import derives_from, is_rloo

Range = tuple[float, float]
"""Log importance ratios, nats: below the first or above the second is beyond the range."""


@dataclass(frozen=True)
class Objective:
    """The parts of a trainer's objective that a pair's sums can tell something about.

    Attributes:
        beta: weight of the KL penalty, 0 for none.
        penalised: pair -> the estimator that is penalised with, ``"k1"`` or ``"k3"``.
        ranges: pair -> the range that its importance ratios are clipped or masked to.
    """

    beta: float = 0.0
    penalised: Mapping[str, str] = field(default_factory=dict)
    ranges: Mapping[str, Range] = field(default_factory=dict)

    def values(self, pair: str, values: Mapping[str, float], histogram: Array) -> dict[str, float]:
        """``penalty/*`` and ``clip/*`` of a pair, those that apply to it.

        Args:
            pair: its name.
            values: its metrics by name.
            histogram: [HISTOGRAM] counts of d.
        """
        found = {}
        if self.beta and pair in self.penalised:
            estimator = self.penalised[pair]
            found["penalty/mean"] = self.beta * values[f"{estimator}/mean"]
            found["penalty/se"] = abs(self.beta) * values[f"{estimator}/se"]
        if pair in self.ranges and values["tokens"]:
            low, high = self.ranges[pair]
            found["clip/low"] = below(histogram, low) / values["tokens"]
            found["clip/high"] = 1 - below(histogram, high) / values["tokens"]
        return found


def objective_of(trainer: Any, kind: str) -> Objective:
    """The objective of a trainer of a kind of `kinds`; empty where TRL's attributes are absent."""
    if kind == "group":
        return _of_group(trainer)
    if kind == "packed":
        return Objective(ranges=_named({"rollout_policy": _clip(trainer)}))
    if kind == "monolith":
        args = trainer.args
        estimator = "k3" if getattr(args, "kl_estimator", "k1") == "k3" else "k1"
        return Objective(float(getattr(args, "kl_coef", 0.0)), {"old_ref": estimator})
    return Objective()


def _of_group(trainer: Any) -> Objective:
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
