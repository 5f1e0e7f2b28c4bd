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

LENGTH, SKIP = 100, 5
"""Values that the baseline is made of, and the latest ones left out."""
WARM_UP = 30
"""Values that a baseline needs before it judges."""
RELATIVE_FLOOR = 0.03
"""The smallest spread that is believed, as a share of the median."""


@dataclass(frozen=True)
class FlatScore:
    """A value against its baseline; nan where there is none yet."""

    value: float = math.nan
    se: float = 0.0
    centre: float = math.nan
    z: float = math.nan


def standing(
    window: Floats, errors: Floats, value: float, se: float, slack: float
) -> tuple[float, float]:
    """The centre of a window and the z of a value; nan where there is no spread at all."""
    centre = median(window)
    own = robust_sd(window, centre) ** 2 - median(errors)
    floor = RELATIVE_FLOOR * abs(centre)
    scale = math.sqrt(max(own, floor**2) + se**2 + slack**2)
    return centre, (value - centre) / scale if scale > 0 else math.nan


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
        centre, z = standing(window, self._errors.last(LENGTH), value, se, slack)
        return FlatScore(value, se, centre, z)

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
