"""A sink for a tracker's own library: numbers, alerts, now and then media, and the page at the end.

What the libraries differ in is a `Tracker`, a module each; what they share is here. Everything of a
tracker's is called on one thread of ours, so a slow one costs training nothing. Media come at the
first step, every `MEDIA_EVERY` and at alerts; no prompt, and no token's text unless an `annotate`
is given.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from klmonitor.background import Worker
from klmonitor.record.rows import shown_tokens
from klmonitor.report import Alert, ExtremeToken, Later, Report
from klmonitor.sinks.media import Heat, heat_of, page_of
from klmonitor.sinks.selection import Metrics, check_metrics, select
from klmonitor.sinks.tokentable import COLUMNS, Annotate, token_rows, without_text

CAPACITY = 256
"""Reports that may wait once a tracker has stalled."""
MEDIA_EVERY = 50
"""Steps between two histograms, and two tables, where nothing alerts."""

logger = logging.getLogger("klmonitor")


class Tracker(Protocol):
    """A run of a tracker; every method may raise, and is called on one thread.

    Attributes:
        name: what people call the tracker.
    """

    name: str

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Take the numbers of a step."""

    def alert(self, alert: Alert) -> None:
        """Tell an alert."""

    def media(
        self, step: int, heat: Heat, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        """Take what is drawn: histograms of d, and the extreme tokens as a table."""

    def page(self, html: str, step: int) -> None:
        """Take the page of ``klmonitor report``."""

    def finish(self) -> None:
        """End the run, if it is ours."""


class TrackerSink:
    """Sends the chosen metrics, the alerts and the media of each report to a tracker.

    Args:
        tracker: whose run.
        metrics: ``"core"``, ``"full"`` or a list of globs.
        run_dir: of the record whose page is sent at the end; None: no page.
        tokens: whether there is a table of extreme tokens.
        annotate: gives those tokens their text; None: the table has none.

    Raises:
        ValueError: `metrics` is wrong.
    """

    def __init__(
        self,
        tracker: Tracker,
        metrics: Metrics = "core",
        run_dir: str | os.PathLike[str] | None = None,
        tokens: bool = True,
        annotate: Annotate | None = None,
    ) -> None:
        check_metrics(metrics)
        self.tracker, self.name = tracker, tracker.name
        self._metrics = metrics
        self._run_dir = None if run_dir is None else Path(run_dir)
        self._tokens = tokens
        self._annotate = annotate
        self._media_step: int | None = None
        self._last: int | None = None
        self._closed = False
        self._worker = Worker(tracker.name, CAPACITY)

    @property
    def dropped(self) -> int:
        """Reports not tried, because the tracker hung."""
        return self._worker.dropped

    @property
    def errors(self) -> int:
        """Reports lost to errors."""
        return self._worker.errors

    def __call__(self, report: Report) -> None:
        """Queue a report."""
        self._last = report.step
        self._worker.submit(partial(self._log, report))
        for alert in report.alerts:
            self._worker.submit(partial(self.tracker.alert, alert))
        if self._media_due(report):
            self._media_step = report.step
            self._worker.submit(partial(self._media, report, self._table_of(report)))

    def close(self, timeout: float = 5.0) -> None:
        """Send what waits and the page, within `timeout` seconds; finish a run that we made."""
        if not self._closed:
            self._worker.submit(self._page)
            self._worker.submit(self.tracker.finish)
        self._closed = True
        self._worker.close(timeout)

    def _media_due(self, report: Report) -> bool:
        last = self._media_step
        due = last is None or report.alerts or not 0 <= report.step - last < MEDIA_EVERY
        return report.phase == "train" and bool(due)

    def _table_of(self, report: Report) -> Sequence[ExtremeToken]:
        """The tokens of the table, with their text if they may have it."""
        if not self._tokens:
            return ()
        tokens = Later(partial(shown_tokens, report))
        return tokens if self._annotate is None else self._annotate(tokens, report.phase)

    # --- on the worker's thread ------------------------------------------------------------
    def _log(self, report: Report) -> None:
        row = select(self._metrics, report)
        if row:
            self.tracker.log(row, report.step)

    def _media(self, report: Report, tokens: Sequence[ExtremeToken]) -> None:
        columns: Sequence[str] = COLUMNS
        rows = token_rows(report.step, tokens)
        if self._annotate is None:
            columns, rows = without_text(columns), [without_text(row) for row in rows]
        heat = heat_of(report)
        if heat or rows:
            self.tracker.media(report.step, heat, columns, rows)

    def _page(self) -> None:
        """Send the run's page; say why, where there is none."""
        if self._last is None or self._run_dir is None:
            return
        try:
            html = page_of(self._run_dir)
        except (ValueError, OSError) as error:
            logger.warning("klmonitor: no page in %s: %s", self.tracker.name, error)
            return
        self.tracker.page(html, self._last)
