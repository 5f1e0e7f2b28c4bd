"""What verl's metrics tell of a run beside log-probs: learning rate, weight of the penalty, steps.

verl's ``actor/lr`` is read after its scheduler has stepped: it is of the update after the one that
was just made. A step's own numbers are of the weights before its update, so theirs is the rate of
the row before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from klmonitor.hooks.progress import Progress
from klmonitor_verl.settings import at

ACTOR = "actor_rollout_ref.actor"
RATE = ("actor/lr",)
BETA = ("actor/kl_coef", "actor/reward_kl_penalty_coeff")
"""verl's metrics that hold the weight of a KL term, the first that is there."""


class RunValues(Progress):
    """Where a run of verl stands, as the metrics of its steps tell it."""

    def __init__(self, updates_a_step: float = math.nan) -> None:
        """Nothing is known but how many updates a step has."""
        super().__init__()
        self._next_rate = math.nan
        self._updates_a_step = updates_a_step

    def read(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Take what a step's metrics tell, before its report is made.

        Args:
            step: verl's, which counts from 1.
            metrics: verl's.
        """
        self._rate, self._next_rate = self._next_rate, _number(metrics, RATE)
        self.beta = _number(metrics, BETA)
        self._before = step  # never 0: the workers' numbers are taken between updates
        self.updates = step * self._updates_a_step


def updates_a_step(config: Any) -> float:
    """Optimizer steps of the actor in a step of verl's, as its configuration says; nan if not."""
    batch, mini = at(config, "data.train_batch_size"), at(config, f"{ACTOR}.ppo_mini_batch_size")
    epochs = at(config, f"{ACTOR}.ppo_epochs", 1)
    try:
        return float(epochs * math.ceil(batch / mini))
    except (TypeError, ValueError, ZeroDivisionError):
        return math.nan


def _number(metrics: Mapping[str, Any], names: tuple[str, ...]) -> float:
    """The first of some metrics that is there, nan if none is or it is no number."""
    value = next((metrics[name] for name in names if name in metrics), math.nan)
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
