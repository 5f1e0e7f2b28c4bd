"""One of ms-swift's GRPO trainers being watched: TRL's watch with ms-swift's batches."""

from __future__ import annotations

import math
from importlib.metadata import version
from typing import Any

from klmonitor.hooks.objective import Objective, PenaltyRead
from klmonitor.penalty import Penalty
from klmonitor_swift.capture import LOSS, SwiftCapture
from klmonitor_trl.feed import TrainerCapture, TrainerFeed
from klmonitor_trl.names import LOG_PROBS
from klmonitor_trl.objective import UNEVEN
from klmonitor_trl.watch import TrainerWatch

CLAMP, CLAMP_D = 10.0, 20.0
"""What ms-swift clips k3, and the log-ratio before it, to."""
CLIPPING = ("grpo", "bnpo", "dr_grpo", "dapo", "fipo")
"""Losses that clip the ratio to epsilon."""


class SwiftWatch(TrainerWatch):
    """Binds a trainer on construction."""

    package, title = "ms-swift", "ms-swift"

    def kind_of(self, trainer: Any) -> str:
        """``"swift"``, if the trainer has what is wrapped.

        Raises:
            TypeError: it has not; the message names what is missing.
        """
        for name in (LOSS, LOG_PROBS[0]):
            if not callable(getattr(trainer, name, None)):
                raise TypeError(
                    f"klmonitor cannot watch a {type(trainer).__name__} of ms-swift "
                    f"{version('ms-swift')}, because it has no {name}"
                )
        return "swift"

    def read(self, trainer: Any, kind: str) -> tuple[Objective, PenaltyRead]:
        """The objective and its KL term."""
        loss = str(getattr(trainer, "loss_type", "grpo"))
        tokens = getattr(trainer, "importance_sampling_level", "token") == "token"
        low, high = (getattr(trainer, name, None) for name in ("epsilon_low", "epsilon_high"))
        ranges = {}
        if tokens and loss in CLIPPING and low is not None and high is not None:
            ranges["old_policy"] = (math.log1p(-low) if low < 1 else -math.inf), math.log1p(high)
        penalty = _penalty(trainer, loss)
        term = penalty.penalties.get("policy_ref")
        penalised = {} if term is None else {"policy_ref": "k3"}
        beta = 0.0 if term is None else term.beta
        return Objective(beta, penalised, ranges), penalty

    def capture_for(self, feed: TrainerFeed) -> TrainerCapture:
        """The capture of ms-swift's batches."""
        return SwiftCapture(feed)


def _penalty(trainer: Any, loss: str) -> PenaltyRead:
    beta = float(getattr(trainer, "beta", 0.0) or 0.0)
    if not beta:
        return PenaltyRead(why="the objective has no KL term")
    if getattr(trainer, "kl_in_reward", False):
        return PenaltyRead(why="kl_in_reward is not read; give penalty")
    weight = UNEVEN.get(loss)
    note = f"loss_type {loss} weighs a token {weight}, penalty/* all alike" if weight else ""
    term = Penalty("k3", clamp=CLAMP, clamp_d=CLAMP_D, beta=beta)
    return PenaltyRead({"policy_ref": term}, note)
