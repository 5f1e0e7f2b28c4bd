"""The mixture of k1 and k3: -d + lambda (r - 1), r = e^d, unbiased at any fixed lambda.

    lambda = -Cov(k1, r - 1) / Var(r - 1), clamped to [0, 1],
             times clip((ess - c) / c, 0, 1), times 1 - u

has the smallest error. The second factor leaves k1 where a few tokens make the spread of r (its
effective share ess = (sum r)^2 / (N sum r^2) is small), since lambda is not known there: c falls
from .3 of up to 1,024 tokens to .2 of 4,096 (between Gaussians k1 is the less noisy one below an
ess of .28). The third leaves k1 where that spread is of
sequences in which q hardly draws what p would (u, `unseen`): there r - 1 is -1 at every token, no
control variate but a part of the KL that k3 lacks.

A lambda from the same tokens is small just where a large r came, so that the large ones count less
than the small ones: a bias of order 1 / N. Each token therefore counts at the lambda of all *other*
tokens (cross-fitting that leaves one out), of which it is independent, and

    mean = sum_i (-d_i + lambda_(-i) (r_i - 1)) / N

is unbiased. The sums give lambda; what leaving tokens out adds, (lambda_(-i) - lambda) (r_i - 1),
is small and comes from the histogram, whose values are within .8 % of d: its sums are its own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from klmonitor.numbers.buckets import MIDDLES
from klmonitor.numbers.clusters import ROUNDING, Array, ratio
from klmonitor.summary.fields import CLAMP, SEQUENCE_FIELDS

ESS = (0.2, 0.3)
"""Effective share of r up to which lambda is 0, of 4,096 tokens and more and of 1,024 and fewer;
from twice that it is whole."""
RARE = 3.0
"""A token with r - 1 above so many N is not left out: it would count as in k3, alone, and of draws
from q fewer than one step in three has one (P(r > x) < 1 / x)."""
SEEN, LONG = 0.25, 16
"""A sequence of so many tokens has hardly drawn what p would where its mean r is smaller."""
_KEY, _T, _K1, _K3 = (SEQUENCE_FIELDS.index(name) for name in ("key", "t", "k1", "k3"))


def best_weight(n: ArrayLike, d: ArrayLike, g: ArrayLike, gg: ArrayLike, dg: ArrayLike) -> Array:
    """Lambda from sums over N tokens of d, g = r - 1, g^2 and d g; nan where all g are alike.

    Of any shape.
    """
    n, d, g, gg, dg = (np.asarray(x, np.float64) for x in (n, d, g, gg, dg))
    with np.errstate(all="ignore"):
        spread = gg - g * g / n
        known = (n > 1) & (spread > ROUNDING * gg)
        weight = np.clip(np.where(known, (dg - d * g / n) / spread, np.nan), 0.0, 1.0)
        ess = (n + g) ** 2 / (n * (n + 2 * g + gg))
        least = np.clip(ESS[1] - (ESS[1] - ESS[0]) * np.log(n / 1024) / np.log(4), *ESS)
        found: Array = weight * np.clip(ess / least - 1.0, 0.0, 1.0)
    return found


def unseen(sequences: Array, spread: float) -> float:
    """The share u of the spread of r - 1 over sequences where q hardly draws what p would.

    Args:
        sequences: [top, SEQUENCE_FIELDS] those of largest |S1|; of others it is not known.
        spread: sum of (S3 - S1)^2 over all sequences.
    """
    tokens, g = sequences[:, _T], sequences[:, _K3] - sequences[:, _K1]
    found = (sequences[:, _KEY] >= 0) & (tokens >= LONG) & (g < (SEEN - 1) * tokens)
    share = ratio(float((g * g)[found].sum()), spread)
    return min(share, 1.0) if share > 0 else 0.0


def leaving_one_out(counts: Array, largest: float, smallest: float) -> float:
    """Sum_i (lambda_(-i) - lambda) (r_i - 1) / N over a pair's tokens at u = 0, nats.

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
    moved[np.isnan(moved) | (g > RARE * sums[0])] = 0.0
    return float(moved @ (g * count) / sums[0]) if count.size else 0.0
