"""Mean |d| by where a token is, of the sums of `klmonitor.summary.places`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DECILES, TURNS = 10, 8
"""Tenths of a sequence's counted tokens, and turns, by which the mean |d| is told; the last turn is
told with all that follow."""
Places = dict[str, list[float | None]]
"""``"position"`` and ``"turn"`` -> mean |d| of each, nats; None: no token was there."""


def by_place(sums: NDArray[np.float64]) -> Places:
    """Means of sums; the turns up to the last that has a token.

    Args:
        sums: [DECILES + TURNS, 2] tokens, and their |d|.
    """
    means = [size / tokens if tokens else None for tokens, size in sums.tolist()]
    turns = means[DECILES:]
    while turns and turns[-1] is None:
        turns.pop()
    return {"position": means[:DECILES], "turn": turns}
