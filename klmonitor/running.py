"""Across steps: exponentially weighted means and variances, pooled over tokens.

At each non-empty step (n, S1, S2) <- 2^(-1/h) (n, S1, S2) + this step's, so a step's tokens weigh
half after h steps, however many there were; mean = S1/n, var = S2/n - mean^2, drift between steps
included. Tokens with |d| > 20 nats are left out (and counted by the metric `log_ratio/excluded`).
"""

from __future__ import annotations

import math
from typing import Any

from klmonitor.statistics import PairTotals, positive, ratio

FIRST = {"k1": ("core/d", -1.0), "k2": ("core/d2", 0.5), "k3": ("core/k3", 1.0)}
SECOND = {"k1": ("core/d2", 1.0), "k2": ("core/d4", 0.25), "k3": ("core/k3k3", 1.0)}


class Running:
    """Running means and variances of k1, k2, k3 for each pair."""

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
        self._sums: dict[str, list[float]] = {}

    def update(self, pair: str, totals: PairTotals) -> dict[str, float]:
        """Add a step's tokens; returns the running metrics by name, the step included."""
        new = [totals["core/n"]]
        new += [scale * totals[column] for column, scale in FIRST.values()]
        new += [scale * totals[column] for column, scale in SECOND.values()]
        old = self._sums.get(pair)
        if new[0] > 0 or old is None:
            decay = math.pow(2.0, -1.0 / self.half_life)
            self._sums[pair] = (
                new if old is None else [decay * a + b for a, b in zip(old, new, strict=True)]
            )
        return self.values(pair)

    def values(self, pair: str) -> dict[str, float]:
        """The running metrics of a pair by name; empty before its first token."""
        if pair not in self._sums:
            return {}
        n, *sums = self._sums[pair]
        values: dict[str, float] = {}
        for i, name in enumerate(FIRST):
            mean = ratio(sums[i], n)
            values[f"{name}/running_mean"] = mean
            values[f"{name}/running_var"] = positive(ratio(sums[i + 3], n) - mean * mean)
        return values

    def mean_k1(self) -> dict[str, float]:
        """The running mean k1 of each pair that has one, nats."""
        means = {pair: self.values(pair)["k1/running_mean"] for pair in self._sums}
        return {pair: mean for pair, mean in means.items() if not math.isnan(mean)}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for a checkpoint."""
        return {
            "half_life": self.half_life,
            "sums": {pair: list(sums) for pair, sums in self._sums.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint; the half-life stays the one configured now."""
        self._sums = {pair: list(sums) for pair, sums in state["sums"].items()}
