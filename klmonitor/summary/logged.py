"""Rows that cover several steps: the exact summary of their tokens, not a mean of means."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from klmonitor.report import Alert, Report
from klmonitor.summary.state import Summary, merge_all

KEPT_SUMMARIES = 16
"""Summaries held before they are merged into one."""
KEPT_ALERTS = 1000


class LoggedSteps:
    """The steps since the last row of a trainer that logs every n steps."""

    def __init__(self) -> None:
        """Nothing kept."""
        self._clear()

    def _clear(self) -> None:
        self._summaries: list[Summary] = []
        self._alerts: deque[Alert] = deque(maxlen=KEPT_ALERTS)
        self._scores: dict[str, float] = {}
        self._first: Report | None = None
        self._last: Report | None = None

    def keep(self, summary: Summary, report: Report) -> None:
        """Add a step."""
        self._first = self._first or report
        self._last = report
        self._alerts.extend(report.alerts)
        self._scores |= {name: pair["spike/z"] for name, pair in report.pairs.items()}
        self._summaries.append(summary)
        if len(self._summaries) > KEPT_SUMMARIES:
            self._summaries = [merge_all(self._summaries)]

    def take(self, assemble: Callable[[Summary, Report], Report]) -> Report | None:
        """One report over all steps kept, and forget them; None if there are none.

        Its numbers are those of the union of the tokens; running numbers and scores are the latest
        step's, alerts are all of them.

        Args:
            assemble: makes a report of a merged summary, given the latest step's report.
        """
        first, last = self._first, self._last
        summaries, alerts, scores = self._summaries, tuple(self._alerts), self._scores
        self._clear()
        if first is None or last is None or first is last:
            return last
        merged = assemble(merge_all(summaries), last)
        pairs = {
            name: pair.with_value("spike/z", scores.get(name, math.nan))
            for name, pair in merged.pairs.items()
        }
        run_values = {**last.run_values, "kl/alerts": float(len(alerts))}
        return merged.changed(
            first_step=first.step, pairs=pairs, alerts=alerts, run_values=run_values
        )
