"""Steps' histograms of d on the fixed rows of the heat map, and the quartiles that they give.

Row `HALF` holds d = 0 and what is smaller than `SMALLEST`; above it d > 0, below it d < 0, two
rows an octave. Densities are logs in a byte: a share of 1 is 255, 10^-7 and less 1, nothing 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = NDArray[np.signedinteger[Any]]

SMALLEST, LARGEST = 2.0**-9, 2.0**6
"""Nats: where rows begin and end; what lies beyond is in the last one."""
PER_OCTAVE = 2
HALF = 15 * PER_OCTAVE
ROWS = 2 * HALF + 1
DECADES = 7.0

_EDGES = SMALLEST * 2.0 ** (np.arange(HALF) / PER_OCTAVE)
BOUNDS = np.concatenate([[-LARGEST], -_EDGES[::-1], _EDGES, [LARGEST]])
"""Nats: the ROWS + 1 bounds of the rows; what lies beyond the outer ones is in their rows."""
_TOP = 1.006
"""Edges come rounded to three digits (0.5 %): one that was rounded down is not in the row below."""


def heat_columns(
    histograms: Sequence[tuple[Sequence[float], Sequence[float]]],
    probabilities: Sequence[float] = (),
) -> tuple[bytes, Floats]:
    """Columns of the heat map, and quantiles of d, of many steps at once.

    Args:
        histograms: (edges, counts) of each of N steps: the edge of each bucket that is nearest
            to 0, with the sign of d, nats, and the bucket's tokens.
        probabilities: of the quantiles.

    Returns:
        `ROWS` bytes a step, the most negative d first, all 0 if nothing was counted; and
        [N, len(probabilities)] quantiles, as coarse as the buckets, nan if nothing was counted.
    """
    sizes = np.array([len(edges) for edges, _ in histograms], dtype=int)
    d = _joined([edges for edges, _ in histograms])
    tokens = _joined([counts for _, counts in histograms])
    step = np.repeat(np.arange(sizes.size), sizes)
    total = np.bincount(step, weights=tokens, minlength=sizes.size).astype(float)
    row = _row_of(d)
    counted = np.bincount(step * ROWS + row, weights=tokens, minlength=sizes.size * ROWS)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = counted.reshape(-1, ROWS) / total[:, None]
        byte = np.clip(np.rint(255 + 254 / DECADES * np.log10(share)), 1, 255)
    filled = np.where(share > 0, byte, 0).astype(np.uint8)
    return filled.tobytes(), _quantiles(d, tokens, step, sizes, total, probabilities)


def tokens_by_row(edges: Sequence[float], counts: Sequence[float]) -> Floats:
    """One step's tokens in each of the `ROWS` rows, which lie between the `BOUNDS` of d."""
    row = _row_of(np.asarray(edges, dtype=float))
    tokens: Floats = np.bincount(row, np.asarray(counts, dtype=float), ROWS).astype(float)
    return tokens


def _row_of(d: Floats) -> Rows:
    rows: Rows = HALF + np.sign(d).astype(int) * np.searchsorted(_EDGES, np.abs(d) * _TOP)
    return rows


def _quantiles(
    d: Floats,
    tokens: Floats,
    step: Rows,
    sizes: Rows,
    total: Floats,
    probabilities: Sequence[float],
) -> Floats:
    """The edge of the bucket in which each quantile falls, [steps, probabilities]."""
    found = np.full((sizes.size, len(probabilities)), np.nan)
    some = total > 0
    ends = np.cumsum(sizes)
    reached = np.cumsum(tokens) - np.repeat(np.cumsum(total) - total, sizes)
    for at, probability in enumerate(probabilities):
        short = np.bincount(step[reached < probability * total[step]], minlength=sizes.size)
        place = ends - sizes + np.minimum(short, sizes - 1)
        found[some, at] = d[place[some]]
    return found


def _joined(lists: Sequence[Sequence[float]]) -> Floats:
    return np.fromiter(chain.from_iterable(lists), dtype=float)
