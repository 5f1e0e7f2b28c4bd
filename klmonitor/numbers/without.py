"""A mean without its largest tokens: what they hold of it, and how far they pull it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

RESOLUTION = 1e-13
"""What float64 sums resolve of themselves. A rest smaller than this share is not known from them:
its spread is taken as this share of the whole, so that J is a lower bound (and 0 for constants)."""
NEGLIGIBLE = 1e-9
"""Nats: an uncertainty of the mean without o that nobody minds; where it is larger, and above
0.1 % of that mean, the mean is nan."""


class Dominance(NamedTuple):
    """How far a few tokens o carry an estimator's mean; every field is nan if nothing counted.

    Attributes:
        level: 0 none, 1 warn, 2 severe.
        tokens: how many tokens o has.
        v: share of sum (x - mean)^2 held by o.
        j: (mean - mean without o) / (s without o / sqrt(N)), standard errors.
        top_share: share of sum |x| held by o.
        mean_without_top: mean of the tokens outside o, nats; nan where the sums cannot resolve it
            (k3 beside a token of d > 20 or so, unless the sums of the core are given).
        apart: ratio of the smallest |x| in o to the largest outside it.
    """

    level: float
    tokens: float
    v: float
    j: float
    top_share: float
    mean_without_top: float
    apart: float


def unknown(level: float) -> Dominance:
    """A level without numbers."""
    nan = math.nan
    return Dominance(level, nan, nan, nan, nan, nan, nan)


def at_level(found: Dominance, level: float) -> Dominance:
    """The same at a level."""
    return found if found.level == level else found._replace(level=float(level))


def without(
    k: int, values: Sequence[float], n: float, mean: float, var: float, sum_abs: float
) -> Dominance:
    """The numbers of `Dominance`, level 0, for the first k values; unlisted tokens are smaller."""
    top = values[:k]
    k = len(top)
    rest = n - k
    nan = math.nan
    if not k:
        return Dominance(0.0, 0.0, 0.0, 0.0, 0.0, mean, nan)
    if rest < 2:
        return Dominance(0.0, float(k), nan, nan, nan, nan, nan)
    sum_of_top = math.fsum(top)
    mean_of_top = sum_of_top / k
    mean_of_rest = (n * mean - sum_of_top) / rest
    squares = (n - 1) * var
    between = k * rest / n * (mean_of_top - mean_of_rest) ** 2
    squares_of_rest = squares - between - sum([(x - mean_of_top) ** 2 for x in top])
    unresolved = RESOLUTION * (squares + n * mean**2)
    spread = math.sqrt(max(squares_of_rest, unresolved) / (rest - 1))
    uncertainty = RESOLUTION * sum_abs / rest
    known = uncertainty <= max(1e-3 * abs(mean_of_rest), NEGLIGIBLE)
    outside = values[k] if len(values) > k else 0.0
    return Dominance(
        0.0,
        float(k),
        share(sum([(x - mean) ** 2 for x in top]), squares),
        (mean - mean_of_rest) * math.sqrt(n) / spread if spread > 0 else 0.0,
        share(math.fsum(map(abs, top)), sum_abs),
        mean_of_rest if known else nan,
        abs(top[-1] / outside) if outside != 0 else math.inf,
    )


def share(part: float, whole: float) -> float:
    """Part of a sum, at most 1 for rounding; 0 of nothing."""
    return min(part / whole, 1.0) if whole > 0 else 0.0
