"""Mean |d| by where a token is, of the sums of `klmonitor.summary.places`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DECILES, TURNS = 10, 8
"""Tenths of a sequence's counted tokens, and turns, by which the mean |d| is told."""
POSITIONS = tuple(f"by_position/below_{100 * (i + 1) // DECILES}/abs" for i in range(DECILES))
"""Metrics: of each tenth of the sequences' counted tokens."""
BY_TURN = tuple(f"by_turn/{i + 1}/abs" for i in range(TURNS))
"""Metrics: of each turn, the last with all that follow."""


def by_place(sums: NDArray[np.float64]) -> dict[str, float]:
    """Metric -> mean |d|, nats; only where a token was.

    Args:
        sums: [DECILES + TURNS, 2] tokens, and their |d|.
    """
    named = zip((*POSITIONS, *BY_TURN), sums.tolist(), strict=True)
    return {name: size / tokens for name, (tokens, size) in named if tokens}
