"""Across steps: exponentially weighted means and variances, pooled over tokens.

Here the sums are kept; `statistics.pair_numbers` adds to them and takes means and variances.

At each non-empty step (n, S1, S2) <- 2^(-1/h) (n, S1, S2) + this step's, so a step's tokens weigh
half after h steps, however many there were; mean = S1/n, var = S2/n - mean^2, drift between steps
included. Tokens with |d| > 20 nats are left out (and counted by the metric `log_ratio/excluded`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from klmonitor.numbers.buckets import Array
from klmonitor.numbers.statistics import N_RUNNING, running_mean


class Running:
    """Running sums of k1, k2, k3 for each pair."""

    def __init__(self, half_life: float = 100.0) -> None:
        """Start empty.

        Args:
            half_life: steps after which a step's tokens weigh half.

        Raises:
            ValueError: `half_life` is not positive.
        """
        if not half_life > 0:
            raise ValueError(f"half_life is {half_life} steps: pass a positive number")
        self.half_life = half_life
        self._sums: dict[str, Array] = {}

    @property
    def decay(self) -> float:
        """What is left of a step's weight at the next."""
        return math.pow(2.0, -1.0 / self.half_life)

    def sums(self, pair: str) -> Array:
        """n, then S1 and S2 of k1, k2, k3, to be added to; zeros before the pair's first token."""
        if pair not in self._sums:
            self._sums[pair] = np.zeros(N_RUNNING)
        return self._sums[pair]

    def mean_k1(self) -> dict[str, float]:
        """The running mean k1 of each pair that has one, nats."""
        means = {pair: float(running_mean(sums, 1)) for pair, sums in self._sums.items()}
        return {pair: mean for pair, mean in means.items() if not math.isnan(mean)}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for a checkpoint."""
        return {
            "half_life": self.half_life,
            "sums": {pair: sums.tolist() for pair, sums in self._sums.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint; the half-life stays the one configured now."""
        self._sums = {pair: np.array(sums, np.float64) for pair, sums in state["sums"].items()}
