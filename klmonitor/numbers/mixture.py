"""The mixture of k1 and k3: -d + lambda (r - 1), r = e^d, unbiased at any fixed lambda.

    lambda = -Cov(k1, r - 1) / Var(r - 1), clamped to [0, 1], times clip((ess - .15) / .15, 0, 1)

has the smallest error. The second factor leaves k1 where a few tokens make the spread of r (its
effective share ess = (sum r)^2 / (N sum r^2) is small), since lambda is not known there.

A lambda from the same tokens is small just where a large r came, so that the large ones count less
than the small ones: a bias of order 1 / N. Each token therefore counts at the lambda of all *other*
tokens (cross-fitting that leaves one out), of which it is independent, and

    mean = sum_i (-d_i + lambda_(-i) (r_i - 1)) / N

is unbiased. The sums give lambda; what leaving tokens out adds, (lambda_(-i) - lambda) (r_i - 1),
is small and comes from the histogram, whose values are within .8 % of d: its sums are its own.
"""

from __future__ import annotations

import numpy as np

from klmonitor.numbers.buckets import MIDDLES
from klmonitor.numbers.clusters import ROUNDING, Array
from klmonitor.summary.fields import CLAMP

ESS = (0.15, 0.3)
"""Effective share of r up to which lambda is 0, and from which it is whole."""
LONE = 0.98
"""A token that holds so much of sum (r - 1)^2 is not left out: it would count as in k3, alone."""


def best_weight(n: Array, d: Array, g: Array, gg: Array, dg: Array) -> Array:
    """Lambda from sums over N tokens of d, g = r - 1, g^2 and d g; nan where all g are alike.

    Of any shape. Call it within ``np.errstate``.
    """
    spread = gg - g * g / n
    known = (n > 1) & (spread > ROUNDING * gg)
    weight = np.clip(np.where(known, (dg - d * g / n) / spread, np.nan), 0.0, 1.0)
    ess = (n + g) ** 2 / (n * (n + 2 * g + gg))
    found: Array = weight * np.clip((ess - ESS[0]) / (ESS[1] - ESS[0]), 0.0, 1.0)
    return found


def leaving_one_out(counts: Array, largest: float, smallest: float) -> float:
    """Sum_i (lambda_(-i) - lambda) (r_i - 1) / N over a pair's tokens, nats.

    Args:
        counts: [HISTOGRAM] of d by bucket.
        largest: d.
        smallest: the largest -d.
    """
    bucket = np.flatnonzero(counts > 0)
    count = counts[bucket]
    d = np.clip(MIDDLES[bucket], -smallest, min(largest, CLAMP))
    g = np.expm1(d)
    moments = np.array((np.ones_like(d), d, g, g * g, d * g))
    sums = moments @ count
    weights = best_weight(*np.column_stack((sums, sums[:, None] - moments)))  # first, of all
    moved = weights[1:] - weights[0]
    moved[np.isnan(moved) | (moments[3] > LONE * sums[3])] = 0.0
    return float(moved @ (g * count)) / sums[0] if count.size else 0.0
