"""Numbers, alerts, histograms, a table and the page to trackio.

Rows carry the training step. A trainer that logs without one goes on from there: trackio counts on
from the largest step so far.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from klmonitor.report import Alert
from klmonitor.sinks.media import Heat
from klmonitor.sinks.panels import TOKENS
from klmonitor.sinks.queued import library
from klmonitor.sinks.tracker import LibraryRun

LEVELS = {"info": "INFO", "warn": "WARN", "critical": "ERROR"}


class TrackioRun(LibraryRun):
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
        if run is None:
            project = os.environ.get("TRACKIO_PROJECT", "klmonitor")
            run = trackio.init(project=project, embed=False)
        super().__init__(trackio, run)

    def alert(self, alert: Alert) -> None:
        """Raise an alert by trackio's own call, at the alert's step."""
        level = self._library.AlertLevel[LEVELS.get(alert.severity, "WARN")]
        title = f"{alert.kind}: {alert.pair or 'run'}"
        self._run.alert(title=title, text=alert.text(), level=level, step=alert.step)

    def media(
        self, step: int, heat: Heat, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        """Log histograms and the table."""
        drawn = {
            name: self._library.Histogram(np_histogram=(tokens, bounds))
            for name, (tokens, bounds) in heat.items()
        }
        if rows:
            data = [list(row) for row in rows]
            drawn[TOKENS] = self._library.Table(columns=list(columns), data=data)
        self._run.log(drawn, step=step)

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
