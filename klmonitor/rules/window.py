"""A fixed-size memory of numbers, and the robust location and spread that the rules use."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from klmonitor.numbers.stored import numbers_of

Floats = NDArray[np.float64]

NORMAL_THIRD = 1.9
"""About the third largest of a hundred values of a standard normal sample."""
LARGEST, ONCE = 0.1, 0.001
"""Share of values that a tail is estimated from, and how rarely what it tells is exceeded."""
NORMAL_MAD = 1.4826
"""The median absolute deviation of a normal sample times this is its standard deviation."""


class Window:
    """The last `size` numbers given to `append`, oldest first, always as one contiguous slice.

    Every number is stored twice, `size` apart, so that no slice ever wraps round: an append costs
    two writes and a read costs no copy. Memory: 16 bytes a number.

    Args:
        size: how many numbers are remembered.
        values: what to start from; only the last `size` are kept.
    """

    __slots__ = ("_at", "_buffer", "_count", "_size")

    def __init__(self, size: int, values: Iterable[float] = ()) -> None:
        self._size = size
        self._buffer = np.zeros(2 * size)
        self._at = 0
        self._count = 0
        for value in numbers_of(list(values), "a window"):
            self.append(value)

    def __len__(self) -> int:
        return self._count

    def append(self, value: float) -> None:
        """Remember a number, forgetting the oldest if the window is full."""
        self._buffer[self._at] = self._buffer[self._at + self._size] = value
        self._at = (self._at + 1) % self._size
        self._count = min(self._count + 1, self._size)

    def last(self, count: int, skip: int = 0) -> Floats:
        """The `count` numbers before the latest `skip`, oldest first; fewer if there are fewer.

        The slice is a view: it is overwritten by later appends.
        """
        stop = self._at + self._size
        start = max(stop - self._count, stop - skip - count)
        return self._buffer[start : max(start, stop - skip)]

    def tolist(self) -> list[float]:
        """All numbers, oldest first."""
        return [float(value) for value in self.last(self._size)]


def median(values: Floats) -> float:
    """The median; nan of nothing. Same as `numpy.median`, at a third of its overhead."""
    if not values.size:
        return math.nan
    ordered = values.copy()
    ordered.sort()
    return middle(ordered)


def middle(ordered: Floats | Sequence[float]) -> float:
    """The median of what is in order."""
    half = len(ordered) // 2
    upper = float(ordered[half])
    return upper if len(ordered) % 2 else 0.5 * (upper + float(ordered[half - 1]))


def located(values: Floats) -> tuple[float, float, float]:
    """The median, `robust_sd` about it, and the deviation of a normal sample that is as wide.

    The last is the larger of what the median of the deviations and what the third largest value
    say: a run whose values often lie far above needs a larger one to be news, and two odd ones
    change nothing. All are nan of nothing.
    """
    if not values.size:
        return math.nan, math.nan, math.nan
    ordered = values.copy()
    ordered.sort()
    centre = middle(ordered)
    usual = robust_sd(values, centre)
    third = float(ordered[-min(values.size, 3)])
    return centre, usual, max(usual, (third - centre) / NORMAL_THIRD)


def far_quantile(values: Floats, centre: float) -> float:
    """What a sample exceeds above `centre` with probability 0.001 at most, if its tails are alike.

    Weissman's estimator (J. Am. Stat. Assoc. 73, 1978) from the k values of the furthest tenth on
    either side, with Hill's index (Ann. Stat. 3, 1975) less its standard error, index / sqrt(k).
    Two tails tell twice as much as one, and few odd values bend them less; what lies below counts
    as no further than the third largest above, since a run that dips is none that jumps.
    Right for a power law; a tenth of a t or normal distribution reaches into its body, where the
    index is larger, so that the quantile is up to 1.6 times too large (t3: 1.4, normal: 1.6).
    """
    k = 2 * int(LARGEST * values.size)
    if not k:
        return math.nan
    off = values - centre
    beyond = np.sort(np.maximum(off, np.minimum(-off, _third(off))))[-k - 1 :]
    if not beyond[0] > 0:
        return 0.0
    index = float(np.log(beyond[1:] / beyond[0]).mean()) * (1 - 1 / math.sqrt(k))
    return float(beyond[0] * (LARGEST / ONCE) ** index)


def _third(values: Floats) -> float:
    """The third largest, or the smallest of fewer."""
    return float(np.sort(values)[-min(values.size, 3)])


def robust_sd(values: Floats, centre: float) -> float:
    """1.4826 x the median absolute deviation from `centre`; nan of nothing."""
    return NORMAL_MAD * median(np.abs(values - centre))
