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
from typing import Any, Protocol

from klmonitor.report import Alert, ExtremeToken, Report
from klmonitor.sinks.media import Heat, heat_of, page_of
from klmonitor.sinks.panels import REPORT
from klmonitor.sinks.queued import MediaSink
from klmonitor.sinks.selection import Metrics, select
from klmonitor.sinks.tokentable import COLUMNS, Annotate, token_rows, without_text

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


class LibraryRun:
    """A run of a library that takes rows, and pages as its ``Html``.

    Args:
        library: the module.
        run: of it.
    """

    def __init__(self, library: Any, run: Any) -> None:
        self._library, self._run = library, run

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Log the numbers of a step."""
        self._run.log(dict(row), step=step)

    def page(self, html: str, step: int) -> None:
        """Log the page."""
        self._run.log({REPORT: self._library.Html(html)}, step=step)


class TrackerSink(MediaSink):
    """Sends the chosen metrics, the alerts and the media of each report to a tracker.

    Args:
        tracker: whose run.
        metrics, run_dir, tokens, annotate: as of `MediaSink`.

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
        super().__init__(tracker.name, metrics, run_dir, tokens, annotate)
        self.tracker, self.name = tracker, tracker.name

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
