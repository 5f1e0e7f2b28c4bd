"""Across steps: exponentially weighted means and variances, pooled over tokens.

Here the sums are kept; the table of metrics takes means and variances.

At each non-empty step (n, S1, S2) <- 2^(-1/h) (n, S1, S2) + this step's, so a step's tokens weigh
half after h steps, however many there were; mean = S1/n, var = S2/n - mean^2, drift between steps
included. Tokens with |d| > 20 nats are left out (and counted by the metric `log_ratio/excluded`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from klmonitor.numbers.clusters import Floats
from klmonitor.numbers.stored import numbers_of
from klmonitor.numbers.sums import N_RUNNING, StepSums
from klmonitor.pairs import PAIR_INDEX
from klmonitor.summary.fields import COLUMN

_COLUMNS = [COLUMN[f"core/{name}"] for name in ("n", "d", "d2", "k3", "d2", "d4", "k3k3")]
_SCALES = (1.0, -1.0, 0.5, 1.0, 1.0, 0.25, 1.0)
"""n, S1 of k1, k2, k3 and S2 of them: these sums of the core, times these."""


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
        self._sums: dict[str, Floats] = {}

    def read(self, steps: Mapping[str, StepSums]) -> None:
        """Give the sums of a step the running ones as they are."""
        for pair, sums in steps.items():
            sums.running = self._sums.get(pair, sums.running)

    def fresh(self) -> Running:
        """An empty one of the same half-life."""
        return Running(self.half_life)

    def advance(self, steps: Mapping[str, StepSums]) -> None:
        """Add a step's tokens up to `CORE_RADIUS`, and give its sums the running ones."""
        decay = math.pow(2.0, -1.0 / self.half_life)
        for pair, sums in steps.items():
            kept = self._sums.setdefault(pair, (0.0,) * N_RUNNING)
            added = [scale * sums.columns[i] for scale, i in zip(_SCALES, _COLUMNS, strict=True)]
            if added[0] > 0:
                both = zip(kept, added, strict=True)
                self._sums[pair] = [old * decay + new for old, new in both]
        self.read(steps)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for a checkpoint."""
        return {
            "half_life": self.half_life,
            "sums": {pair: list(sums) for pair, sums in self._sums.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint; the half-life stays the one configured now.

        Raises:
            ValueError: it holds other numbers than running sums; nothing is changed.
        """
        found: dict[str, Floats] = {}
        for pair, sums in state["sums"].items():
            if pair not in PAIR_INDEX:
                raise ValueError(f"the running sums are of {pair!r}, which is no pair")
            values = numbers_of(sums, f"the running sums of {pair}", N_RUNNING)
            if not all(map(math.isfinite, values)) or min(values[0], *values[4:]) < 0:
                raise ValueError(f"the running sums of {pair} are {sums}")
            found[pair] = values
        self._sums = found
