"""A flat robust baseline for what has no logarithm: k1 (signed) and the rate of outliers.

    z = (x - median) / scale,    scale^2 = max(MAD^2 - median(se^2), floor^2) + se_t^2,

median and MAD (x 1.4826) of the last 100 values without the latest five. All of them enter, also
those that were flagged: a burst moves no median, and what stays becomes the new baseline.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from klmonitor.rules.window import Floats, Window, median, robust_sd
from klmonitor.summary.once import once

LENGTH, SKIP = 100, 5
"""Values that the baseline is made of, and the latest ones left out."""
LATELY = 20
"""Latest of these values whose median is what is usual lately."""
WARM_UP = 30
"""Values that a baseline needs before it judges."""
RELATIVE_FLOOR = 0.03
"""The smallest spread that is believed, as a share of the median."""


@dataclass(frozen=True)
class FlatScore:
    """A value with its standard error against its baseline; nan where there is none yet.

    The baseline is its median and, for `z`, the windows: its values, and their last squared
    standard errors, as they are before the value is taken. The slack is a difference that something
    else explains.
    """

    value: float = math.nan
    se: float = 0.0
    centre: float = math.nan
    slack: float = 0.0
    windows: tuple[Floats, Floats] | None = None

    @once
    def lately(self) -> float:
        """The median of the latest values of the baseline; nan where there is none yet."""
        return math.nan if self.windows is None else median(self.windows[0][-LATELY:])

    @once
    def z(self) -> float:
        """Scales from the centre; nan where there is no spread at all."""
        if self.windows is None:
            return math.nan
        window, errors = self.windows
        own = robust_sd(window, self.centre) ** 2 - median(errors)
        floor = RELATIVE_FLOOR * abs(self.centre)
        scale = math.sqrt(max(own, floor**2) + self.se**2 + self.slack**2)
        return (self.value - self.centre) / scale if scale > 0 else math.nan


class FlatLevel:
    """The baseline of one signed number."""

    def __init__(self) -> None:
        self._values = Window(LENGTH + SKIP)
        self._errors = Window(LENGTH)

    def score(self, value: float, se: float, slack: float = 0.0) -> FlatScore:
        """Judge a value; changes nothing.

        Args:
            value: nan is not judged.
            se: its standard error, nan if unknown.
            slack: a difference that something else explains, added to the scale.
        """
        se = 0.0 if math.isnan(se) else se
        window = self._values.last(LENGTH, skip=SKIP)
        if math.isnan(value) or window.size < WARM_UP:
            return FlatScore(value, se)
        return FlatScore(value, se, median(window), slack, (window, self._errors.last(LENGTH)))

    def take(self, score: FlatScore) -> None:
        """Learn a value that has been judged, unless it is nan."""
        if math.isnan(score.value):
            return
        self._values.append(score.value)
        self._errors.append(score.se**2)

    def state_dict(self) -> dict[str, Any]:
        """Everything remembered, as lists of numbers."""
        return {"values": self._values.tolist(), "errors": self._errors.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave; from nothing where that is empty."""
        self._values = Window(LENGTH + SKIP, state.get("values", ()))
        self._errors = Window(LENGTH, state.get("errors", ()))
