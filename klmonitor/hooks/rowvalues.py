"""What the rows of a trainer's metrics tell of a run: learning rate, weight of the penalty, steps.

A trainer that reads the learning rate after its scheduler has stepped logs that of the update
after the one that was just made. A step's own numbers are of the weights before its update, so
theirs is the rate of the row before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from klmonitor.hooks.progress import Progress


class RowValues(Progress):
    """Where a run stands, as the metrics of its steps tell it."""

    def __init__(
        self, rate: tuple[str, ...], beta: tuple[str, ...], updates_a_step: float = math.nan
    ) -> None:
        """Nothing is known but how many updates a step has.

        Args:
            rate: metrics that hold the learning rate, the first that is there.
            beta: the same of the weight of a KL term.
            updates_a_step: optimizer steps in one of the trainer's; nan: unknown.
        """
        super().__init__()
        self._names = rate, beta
        self._next_rate = math.nan
        self._updates_a_step = updates_a_step

    def read(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Take what a step's metrics tell, before its report is made.

        Args:
            step: the trainer's, which counts from 1.
            metrics: the trainer's.
        """
        rate, beta = self._names
        self._rate, self._next_rate = self._next_rate, _number(metrics, rate)
        self.beta = _number(metrics, beta)
        # Unknown at the first: never 0, as workers' numbers are taken between its updates, and no
        # more either, or the run would be one that was resumed.
        self._before = step - 1 if step > 1 else None
        self.updates = step * self._updates_a_step


def _number(metrics: Mapping[str, Any], names: tuple[str, ...]) -> float:
    """The first of some metrics that is there, nan if none is or it is no number."""
    value = next((metrics[name] for name in names if name in metrics), math.nan)
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
