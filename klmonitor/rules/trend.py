"""The level that log k3 is expected at: a robust line through the last steps, and its spread.

A flat baseline is blind while a run starts up: KL begins at 0 and log k3 climbs by five or six in
the first sixty steps, so the spread of the past hides everything. A level that follows an upward
trend sees a jump on the ramp; what it cannot see, growth that goes on, is left to the rules that
compare with a flat baseline (drift, runaway).

With w = the last W accepted values of y = log k3 without the latest one,

    slope = (median of w's second half - median of its first) / (W / 2), clipped to [0, 0.15],
    level = median(w) + slope (W / 2 + 1.5),
    scale^2 = max((1.4826 median |residual|)^2 - median(se^2), 0.03^2) + se_t^2,
    z = (y - level) / scale,

residual = y - level at the time, over the last H steps without the latest two (fewer in a young
run); se is the standard
error of y, so that a step with few tokens is judged by its own error and not by its neighbours'.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from klmonitor.rules.window import NORMAL_MAD, Floats, Window, median

WINDOW = 30
"""W: accepted steps that the level is drawn through."""
SPREAD_WINDOW = 100
"""H: residuals that the scale is taken from."""
SPREAD_SHARE, LEAST_SPREAD = 0.4, 20
"""Of a young run only this share, and at least so many: the misses of the steep start say nothing
about the calmer steps after it."""
MAX_SLOPE = 0.15
"""The steepest trend that is followed, in log k3 per step (a doubling in under five steps)."""
MIN_POINTS = 6
"""Accepted steps before a level is drawn at all (residuals are collected from here on)."""
WARM_UP = 20
"""Accepted steps before anything is judged."""
FLOOR = 0.03
"""The smallest spread of log k3 between steps that is believed."""
MAX_GAP = 10
"""How many skipped steps the trend is carried over."""
SETTLE = 50
"""Steps that a shifted level must hold to become the new baseline."""
SHIFT_WINDOW = 5
"""Latest z values whose median says whether the level has shifted."""


@dataclass(frozen=True)
class Score:
    """Where one step stands against its expected level; nan where there is no baseline yet.

    Attributes:
        y: log k3; nan if k3 is not positive and finite.
        se: standard error of y (that of k3 / k3), 0 if unknown.
        level: expected y.
        scale: expected spread of y, this step's own error included.
        z: (y - level) / scale.
        z_recent: median of the last five z, this one included.
    """

    y: float = math.nan
    se: float = 0.0
    level: float = math.nan
    scale: float = math.nan
    z: float = math.nan
    z_recent: float = math.nan

    @property
    def ratio(self) -> float:
        """k3 as a multiple of its expected level."""
        return math.exp(min(self.y - self.level, 700.0))


@dataclass(frozen=True)
class Accepted:
    """What a step added to the baseline.

    Attributes:
        values: log k3 of the accepted steps, in order: none, this one, or all of a level that has
            held long enough.
        moved: by how much the level moved in the last case, in log k3; else 0.
    """

    values: tuple[float, ...] = ()
    moved: float = 0.0


NOTHING = Accepted()


def expected(window: Floats, gap: int, residuals: Floats, errors: Floats) -> tuple[float, float]:
    """The level of the step after a window and a gap, and the square of its spread."""
    half = window.size // 2
    rise = median(window[half:]) - median(window[:half])
    slope = min(max(rise / (window.size / 2), 0.0), MAX_SLOPE)
    level = median(window) + slope * (window.size / 2 + 1.5 + gap)
    spread = NORMAL_MAD * median(residuals)
    return level, max(spread**2 - median(errors), FLOOR**2)


class TrendLevel:
    """The trend-following baseline of one pair's log k3.

    A value that the caller flags never enters it. While the level is shifted, values wait; once
    they have held for `SETTLE` steps they become the new baseline, else they are forgotten.

    Args:
        shift_z: the median of the last five z at which the level counts as shifted.
        rearm_z: and below which it no longer does.
    """

    def __init__(self, shift_z: float, rearm_z: float) -> None:
        self._shift_z = shift_z
        self._rearm_z = rearm_z
        self._values = Window(WINDOW + 1)
        self._errors = Window(SPREAD_WINDOW)
        self._residuals = Window(SPREAD_WINDOW + 2)
        self._recent: deque[float] = deque(maxlen=SHIFT_WINDOW)
        self._waiting: list[float] = []
        self._accepted = 0
        self._gap = 0
        self.shifted = False

    def score(self, y: float, se: float) -> Score:
        """Judge one finite value of log k3 against what came before it; changes nothing."""
        window = self._values.last(WINDOW, skip=1)
        if window.size < MIN_POINTS:
            return Score(y, se)
        level, own = expected(
            window,
            min(self._gap, MAX_GAP),
            self._residuals.last(self._spread_length(), skip=2),
            self._errors.last(SPREAD_WINDOW),
        )
        if self._accepted < WARM_UP:
            return Score(y, se, level)
        scale = math.sqrt(own + se**2)
        z = (y - level) / scale
        recent = sorted((*list(self._recent)[1 - SHIFT_WINDOW :], z))
        z_recent = recent[SHIFT_WINDOW // 2] if len(recent) == SHIFT_WINDOW else math.nan
        return Score(y, se, level, scale, z, z_recent)

    def _spread_length(self) -> int:
        return int(min(max(SPREAD_SHARE * self._accepted, LEAST_SPREAD), SPREAD_WINDOW))

    def take(self, score: Score, flagged: bool) -> Accepted:
        """Learn from a step that has been judged, unless it was flagged."""
        if math.isfinite(score.z):
            self._recent.append(score.z)
        if score.z_recent > self._shift_z:
            self.shifted = True
        elif score.z_recent < self._rearm_z:
            self.shifted = False
            self._waiting.clear()
        if self.shifted:
            self._waiting.append(score.y)
            self._gap += 1
            return self._settle(score.level) if len(self._waiting) >= SETTLE else NOTHING
        if flagged:
            self._gap += 1
            return NOTHING
        return self._accept(score)

    def skip(self) -> None:
        """A step without a value: the trend goes on."""
        self._gap += 1

    def _accept(self, score: Score) -> Accepted:
        self._values.append(score.y)
        self._errors.append(score.se**2)
        if math.isfinite(score.level):
            self._residuals.append(abs(score.y - score.level))
        self._accepted += 1
        self._gap = 0
        return Accepted((score.y,))

    def _settle(self, level: float) -> Accepted:
        """The level that held is the new baseline; the spread is still the old one's."""
        held = tuple(self._waiting)
        for y in held:
            self._values.append(y)
        self._waiting.clear()
        self._recent.clear()
        self._accepted += SETTLE
        self._gap = 0
        self.shifted = False
        return Accepted(held, moved=median(np.array(held)) - level)

    def state_dict(self) -> dict[str, Any]:
        """Everything remembered, as numbers and lists."""
        return {
            "values": self._values.tolist(),
            "errors": self._errors.tolist(),
            "residuals": self._residuals.tolist(),
            "recent": list(self._recent),
            "waiting": list(self._waiting),
            "accepted": self._accepted,
            "gap": self._gap,
            "shifted": self.shifted,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self._values = Window(WINDOW + 1, state["values"])
        self._errors = Window(SPREAD_WINDOW, state["errors"])
        self._residuals = Window(SPREAD_WINDOW + 2, state["residuals"])
        self._recent = deque(state["recent"], maxlen=SHIFT_WINDOW)
        self._waiting = list(state["waiting"])
        self._accepted = state["accepted"]
        self._gap = state["gap"]
        self.shifted = state["shifted"]
