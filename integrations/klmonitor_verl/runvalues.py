"""What verl's metrics tell of a run beside log-probs: learning rate, penalty, steps."""

from __future__ import annotations

import math
from typing import Any

from klmonitor.hooks.rowvalues import RowValues
from klmonitor_verl.settings import at

ACTOR = "actor_rollout_ref.actor"
RATE = ("actor/lr",)
BETA = ("actor/kl_coef", "actor/reward_kl_penalty_coeff")


class RunValues(RowValues):
    """Where a run of verl stands, as the metrics of its steps tell it."""

    def __init__(self, updates_a_step: float = math.nan) -> None:
        """Nothing is known but how many updates a step has."""
        super().__init__(RATE, BETA, updates_a_step)


def updates_a_step(config: Any) -> float:
    """Optimizer steps of the actor in a step of verl's, as its configuration says; nan if not."""
    batch, mini = at(config, "data.train_batch_size"), at(config, f"{ACTOR}.ppo_mini_batch_size")
    epochs = at(config, f"{ACTOR}.ppo_epochs", 1)
    try:
        return float(epochs * math.ceil(batch / mini))
    except (TypeError, ValueError, ZeroDivisionError):
        return math.nan
