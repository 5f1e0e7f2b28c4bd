"""The range that an objective clips the ratio policy / old to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from klmonitor.numbers.buckets import Array, below
from klmonitor.summary.fields import FAR_RATIO

ExtraValues = Callable[[str, Mapping[str, float], Array], Mapping[str, float]]
"""As of `numbers.assemble`."""
Range = tuple[float, float]
"""Log importance ratios, nats: below the first or above the second is beyond the range."""
BOUNDED: Mapping[str, float] = {"unclipped/tokens": 0.0, "unclipped/share": 0.0}
"""What is known where the objective bounds every ratio."""


def beyond(clip: Range, tokens: float, histogram: Array) -> dict[str, float]:
    """``clip/low`` and ``clip/high`` of a pair.

    Args:
        clip: the range.
        tokens: counted.
        histogram: [HISTOGRAM] counts of d.
    """
    low, high = clip
    return {
        "clip/low": below(histogram, low) / tokens,
        "clip/high": 1 - below(histogram, high) / tokens,
    }


class ClipRange:
    """The clip range that a user told of, as values of ``old_policy``.

    Args:
        given: (low, high) bounds of the ratio, such as (.8, 1.28), or a third: the largest ratio
            that enters where the advantage is negative (dual clip, TRL's `delta`).
        others: gives values of other kinds.

    Raises:
        ValueError: they are no such bounds.
    """

    def __init__(self, given: Sequence[float], others: ExtraValues | None = None) -> None:
        numbers = tuple(float(x) for x in given)
        if len(numbers) not in (2, 3) or not 0 <= numbers[0] <= 1 <= numbers[1] < math.inf:
            raise ValueError(
                f"clip_range is {given!r}: give the bounds of the ratio policy / old, as "
                "(0.8, 1.28), or with a third for negative advantages, as (0.8, 1.2, 3.0)"
            )
        low, high, *most = numbers
        self._range = (math.log(low) if low else -math.inf), math.log(high)
        self._bounded = bool(most) and most[0] <= FAR_RATIO
        self._others = others

    def __call__(
        self, pair: str, values: Mapping[str, float], histogram: Array
    ) -> dict[str, float]:
        """The values of a pair; of the clip range none but of ``old_policy``."""
        found = {} if self._others is None else dict(self._others(pair, values, histogram))
        if pair == "old_policy" and values["tokens"]:
            found |= beyond(self._range, values["tokens"], histogram)
            found |= BOUNDED if self._bounded else {}
        return found
