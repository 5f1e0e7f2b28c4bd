"""Numbers, alerts, histograms, a table and the page to trackio.

Rows carry the training step. A trainer that logs without one goes on from there: trackio counts on
from the largest step so far.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from klmonitor.report import Alert
from klmonitor.sinks.media import Heat
from klmonitor.sinks.panels import REPORT, TOKENS
from klmonitor.sinks.queued import library

LEVELS = {"info": "INFO", "warn": "WARN", "critical": "ERROR"}


class TrackioRun:
    """A run of trackio.

    Args:
        run: None: the one that is open, else one of our own in the project ``$TRACKIO_PROJECT``
            (else ``klmonitor``), finished by us.

    Raises:
        ImportError: trackio is not installed.
    """

    name = "trackio"

    def __init__(self, run: Any = None) -> None:
        trackio = library("trackio")
        run = run or open_run()
        self._owned = run is None
        project = os.environ.get("TRACKIO_PROJECT", "klmonitor")
        self._run = trackio.init(project=project, embed=False) if run is None else run
        self._trackio = trackio

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Log the numbers of a step."""
        self._run.log(dict(row), step=step)

    def alert(self, alert: Alert) -> None:
        """Raise an alert by trackio's own call, at the alert's step."""
        level = self._trackio.AlertLevel[LEVELS.get(alert.severity, "WARN")]
        title = f"{alert.kind}: {alert.pair or 'run'}"
        self._run.alert(title=title, text=alert.text(), level=level, step=alert.step)

    def media(
        self, step: int, heat: Heat, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        """Log histograms and the table."""
        drawn = {
            name: self._trackio.Histogram(np_histogram=(tokens, bounds))
            for name, (tokens, bounds) in heat.items()
        }
        if rows:
            data = [list(row) for row in rows]
            drawn[TOKENS] = self._trackio.Table(columns=list(columns), data=data)
        self._run.log(drawn, step=step)

    def page(self, html: str, step: int) -> None:
        """Log the page."""
        self._run.log({REPORT: self._trackio.Html(html)}, step=step)

    def finish(self) -> None:
        """Finish a run of our own."""
        if self._owned:
            self._run.finish()


def open_run() -> Any:
    """The run that somebody has opened in this process and on this thread; None: none."""
    context = getattr(sys.modules.get("trackio"), "context_vars", None)
    return None if context is None else context.current_run.get()


def is_open() -> bool:
    """Whether somebody has opened a run that we would go on with."""
    return open_run() is not None
