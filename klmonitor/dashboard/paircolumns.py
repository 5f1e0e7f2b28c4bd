"""One pair of a run as columns: every metric over its rows, and the heat map's."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field

import numpy as np

from klmonitor.dashboard.heat import ROWS, heat_columns
from klmonitor.record.rows import as_float
from klmonitor.report import Row

ESTIMATORS = ("k1", "k2", "k3")
SHOWN = frozenset(
    (
        *(f"{k}/{what}" for k in ESTIMATORS for what in ("mean", "se", "var", "running_var")),
        *(f"log_ratio/{q}" for q in ("p0.1", "p1", "p25", "p50", "p75", "p99", "p99.9")),
        *(f"dominance/{k}/{what}" for k in ("k1", "k3") for what in ("top_share", "level")),
        *("outliers/k1", "outliers/k3", "outliers/rate", "spike/z"),
        *("sequence/k1", "sequence/k3", "tokens", "sequences", "penalty/dead_share"),
    )
)
"""Metrics that the page draws, beside ``group/*``."""
QUARTILES = {"log_ratio/p25": 0.25, "log_ratio/p75": 0.75}
"""Metrics that records of before read off the histogram, and their probabilities."""
MOST_WAITING = 4096
"""Histograms that wait: a few megabytes."""
NAN = math.nan


def is_shown(metric: str) -> bool:
    """Whether the page draws a metric."""
    return metric in SHOWN or metric.startswith("group/")


@dataclass
class PairColumns:
    """One pair: every metric over the rows of the run, and its heat map.

    Histograms wait until they are asked for: many together cost a fraction of each alone.
    """

    rows: int = 0
    metrics: dict[str, array[float]] = field(default_factory=dict)
    _heat: bytearray = field(default_factory=bytearray)
    _waiting: dict[int, Row | None] = field(default_factory=dict)

    @property
    def heat(self) -> bytearray:
        """`ROWS` bytes a row."""
        self.settle()
        return self._heat

    def append(self, body: Row | None) -> None:
        """Add a row."""
        values = {} if body is None else body["values"]
        for name in values:
            if name not in self.metrics:
                self.metrics[name] = array("d", [NAN]) * self.rows
        for name, column in self.metrics.items():
            value = values.get(name)
            column.append(NAN if value is None else value)
        self._waiting[self.rows] = (body or {}).get("histogram")
        self.rows += 1
        if len(self._waiting) >= MOST_WAITING:
            self.settle()

    def put(self, row: int, body: Row | None) -> None:
        """Fill a row that exists in every column."""
        values = {} if body is None else body["values"]
        for name in values:
            if name not in self.metrics:
                self.metrics[name] = array("d", [NAN]) * self.rows
        for name, column in self.metrics.items():
            column[row] = as_float(values.get(name))
        self._waiting[row] = (body or {}).get("histogram")

    def insert(self, row: int) -> None:
        """Make room for a row of nan."""
        self.settle()
        self._heat[row * ROWS : row * ROWS] = bytes(ROWS)
        for column in self.metrics.values():
            column.insert(row, NAN)
        self.rows += 1

    def cut(self, rows: int) -> None:
        """Keep so many rows."""
        self.settle()
        del self._heat[rows * ROWS :]
        for column in self.metrics.values():
            del column[rows:]
        self.rows = rows

    def settle(self) -> None:
        """Take in the histograms that wait."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, {}
        self._heat.extend(bytes(ROWS * self.rows - len(self._heat)))
        found = [(one["edges"], one["counts"]) if one else ((), ()) for one in waiting.values()]
        heat, quartiles = heat_columns(found, tuple(QUARTILES.values()))
        for at, row in enumerate(waiting):
            self._heat[row * ROWS : (row + 1) * ROWS] = heat[at * ROWS : (at + 1) * ROWS]
        for at, name in enumerate(QUARTILES):
            values = quartiles[:, at]
            if name not in self.metrics and np.isnan(values).all():
                continue
            column = self.metrics.setdefault(name, array("d", [NAN]) * self.rows)
            for row, value in zip(waiting, values.tolist(), strict=True):
                if math.isnan(column[row]):
                    column[row] = value
