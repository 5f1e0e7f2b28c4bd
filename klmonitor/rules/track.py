"""What is remembered of one pair from step to step, and what one step looks like against it.

Everything here survives a checkpoint (`state_dict`) and has a fixed size: a step costs the same
after a million steps as after a hundred.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from klmonitor.report import PairReport
from klmonitor.rules.trend import Score, TrendLevel
from klmonitor.rules.window import Floats, Window

LARGE = 1e300
"""Beyond this a number is an infinity that was stored in a JSON file."""
LONG = 450
"""Accepted steps of log k3 that drift and runaway look back on."""


def finite(value: float) -> float:
    """The value, or nan if it is infinite (or an infinity read back from a record)."""
    return value if abs(value) < LARGE else math.nan


@dataclass(frozen=True)
class Reading:
    """One pair at one step, with what came before it.

    Attributes:
        pair: this step's numbers.
        score: log k3 against the trend-following level.
        history: accepted log k3 of earlier steps, oldest first.
        steps: steps of this pair seen before this one.
        shifted: log k3 was already away from its level when the step began.
    """

    pair: PairReport
    score: Score
    history: Floats
    steps: int
    shifted: bool

    def __getitem__(self, metric: str) -> float:
        return self.pair[metric]


class Track:
    """The memory of one pair.

    Args:
        shift_z: median of five z at which the level of log k3 counts as shifted.
        rearm_z: and below which it no longer does.
    """

    def __init__(self, shift_z: float, rearm_z: float) -> None:
        self.trend = TrendLevel(shift_z, rearm_z)
        self._history = Window(LONG)
        self._steps = 0

    def read(self, pair: PairReport) -> Reading:
        """One step against the past; changes nothing."""
        return Reading(
            pair=pair,
            score=self._score(pair),
            history=self._history.last(LONG),
            steps=self._steps,
            shifted=self.trend.shifted,
        )

    def _score(self, pair: PairReport) -> Score:
        k3 = finite(pair["k3/mean"])
        if not k3 > 0:
            return Score()
        se = finite(pair["k3/se"]) / k3
        return self.trend.score(math.log(k3), se if math.isfinite(se) else 0.0)

    def take(self, reading: Reading, flagged: bool) -> None:
        """Learn from a step: what was flagged stays out, so does what is not a number."""
        self._steps += 1
        if math.isnan(reading.score.y):
            self.trend.skip()
            return
        accepted = self.trend.take(reading.score, flagged)
        if accepted.moved:
            self._history.shift(accepted.moved)
        for y in accepted.values:
            self._history.append(y)

    def state_dict(self) -> dict[str, Any]:
        """Everything remembered, as numbers and lists."""
        return {
            "trend": self.trend.state_dict(),
            "history": self._history.tolist(),
            "steps": self._steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self.trend.load_state_dict(state["trend"])
        self._history = Window(LONG, state["history"])
        self._steps = state["steps"]
