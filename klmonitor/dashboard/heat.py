"""A step's histogram of d on the fixed rows of the heat map, and the quartiles that it gives.

Row `HALF` holds d = 0 and what is smaller than `SMALLEST`; above it d > 0, below it d < 0, two
rows an octave. Densities are logs in a byte: a share of 1 is 255, 10^-7 and less 1, nothing 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SMALLEST, LARGEST = 2.0**-9, 2.0**6
"""Nats: where rows begin and end; what lies beyond is in the last one."""
PER_OCTAVE = 2
HALF = 15 * PER_OCTAVE
ROWS = 2 * HALF + 1
DECADES = 7.0

_EDGES = SMALLEST * 2.0 ** (np.arange(HALF) / PER_OCTAVE)
_TOP = 1.006
"""Edges come rounded to three digits (0.5 %): one that was rounded down is not in the row below."""


def heat_column(edges: Sequence[float], counts: Sequence[float]) -> bytes:
    """One column of the heat map.

    Args:
        edges: edge of each bucket that is nearest to 0, with the sign of d, nats.
        counts: tokens of each bucket.

    Returns:
        `ROWS` bytes, the most negative d first; all 0 if nothing was counted.
    """
    d = np.asarray(edges, dtype=float)
    tokens = np.asarray(counts, dtype=float)
    total = tokens.sum()
    if not total > 0:
        return bytes(ROWS)
    row = HALF + np.sign(d).astype(int) * np.searchsorted(_EDGES, np.abs(d) * _TOP)
    share = np.bincount(row, weights=tokens, minlength=ROWS) / total
    with np.errstate(divide="ignore"):
        byte = np.rint(255 + 254 / DECADES * np.log10(share))
    filled: NDArray[np.uint8] = np.where(share > 0, np.clip(byte, 1, 255), 0).astype(np.uint8)
    return filled.tobytes()


def quartile(edges: Sequence[float], counts: Sequence[float], probability: float) -> float:
    """The edge of the bucket in which a quantile of d falls, nats; as coarse as the buckets."""
    tokens = np.cumsum(np.asarray(counts, dtype=float))
    if not len(tokens) or not tokens[-1] > 0:
        return float("nan")
    place = int(np.searchsorted(tokens, probability * tokens[-1]))
    return float(edges[min(place, len(edges) - 1)])
