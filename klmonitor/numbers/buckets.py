"""The histogram of d on the host: edges, middles and a coarser one for drawing.

Torch-free. Positions are those of `summary.fields`: a bucket is the leading bits of |d|.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from klmonitor.summary.fields import BUCKETS, CENTRE, LOW_EXPONENT, MANTISSA_BITS

Array = NDArray[np.float64]


@cache
def edge_index(magnitude: float) -> int:
    """Position of a bucket edge of |d|, counted from the tiny bucket.

    Raises:
        ValueError: `magnitude` is not an edge, so that a count beyond it would not be exact.
    """
    lowest = math.ldexp(1.0, LOW_EXPONENT)
    mantissa, exponent = math.frexp(magnitude)  # magnitude = mantissa * 2^exponent, in [.5, 1)
    step = (mantissa * 2 - 1) * (1 << MANTISSA_BITS)
    if magnitude < lowest or step != int(step):
        raise ValueError(
            f"threshold {magnitude} nats is no bucket edge: choose one with at most "
            f"{MANTISSA_BITS} fractional bits, such as 0.5, 1, 1.5, 2, 5 or 10"
        )
    return 1 + ((exponent - 1 - LOW_EXPONENT) << MANTISSA_BITS) + int(step)


def _edges() -> Array:
    """Lower edges of the buckets of |d|: the tiny one, the regular ones, the last."""
    octaves = np.ldexp(1.0, np.arange(LOW_EXPONENT, LOW_EXPONENT + (BUCKETS >> MANTISSA_BITS)))
    steps = 1 + np.arange(1 << MANTISSA_BITS) / (1 << MANTISSA_BITS)
    top = math.ldexp(1.0, LOW_EXPONENT + (BUCKETS >> MANTISSA_BITS))
    return np.concatenate([[0.0], np.outer(octaves, steps).ravel(), [top]])


EDGES = _edges()
_POSITIVE = np.concatenate([[0.0], (EDGES[1:-1] + EDGES[2:]) / 2, [math.inf]])
MIDDLES = np.concatenate([-_POSITIVE[::-1], _POSITIVE])
"""A representative d for every bucket; +-inf beyond the last, to be cut at the exact extremes."""


DRAWN_BITS = 2
"""Buckets an octave of a coarse histogram: 2^2."""
_WIDTH = 1 << (MANTISSA_BITS - DRAWN_BITS)
_DRAWN = np.concatenate([EDGES[:1], EDGES[1:-1:_WIDTH], EDGES[-1:]])
_DRAWN_EDGES = np.concatenate([-_DRAWN[::-1], _DRAWN])
_INSIDE = np.arange(_WIDTH, BUCKETS + 1, _WIDTH)
_LAST = np.concatenate([[0], _INSIDE, [CENTRE - 1, CENTRE], CENTRE + _INSIDE, [2 * CENTRE - 1]])
"""Where each coarse bucket ends: the last, the regular ones and the tiny one, of each sign."""


def coarse_histogram(counts: Array) -> tuple[tuple[float, float], ...]:
    """The non-empty ones of 2^`DRAWN_BITS` buckets an octave, ascending: (lower edge, count).

    An edge is that of |d| with the sign of d; |d| < 2^-20 has edge 0.

    Args:
        counts: [HISTOGRAM], by bucket.
    """
    coarse = np.diff(counts.cumsum()[_LAST], prepend=0.0)
    found = np.flatnonzero(coarse)
    return tuple(zip(_DRAWN_EDGES[found].tolist(), coarse[found].tolist(), strict=True))


def below(counts: Array, log_ratio: float) -> float:
    """Tokens with d < `log_ratio`, any: to the 0.8 % of a bucket's middle.

    Args:
        counts: [HISTOGRAM], by bucket.
        log_ratio: nats.
    """
    return float(counts[: int(np.searchsorted(MIDDLES, log_ratio))].sum())
