"""Numbers, alerts as text, a histogram's rows as a chart, and the page to SwanLab."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from klmonitor.report import Alert
from klmonitor.sinks.media import Heat
from klmonitor.sinks.panels import REPORT, TOKENS
from klmonitor.sinks.queued import library

ALERTS = "klmonitor/alerts"

logger = logging.getLogger("klmonitor")


class SwanlabRun:
    """A run of SwanLab.

    Args:
        run: None: the one that is open, else one of our own. That one is offline where
            there is neither a key nor a mode: nothing ever asks for a key.

    Raises:
        ImportError: swanlab is not installed.
    """

    name = "SwanLab"

    def __init__(self, run: Any = None) -> None:
        swanlab = library("swanlab")
        run = run or open_run()
        if run is None:
            offline = not _has_key()
            project = os.environ.get("SWANLAB_PROJECT", "klmonitor")
            run = swanlab.init(project=project, mode="offline" if offline else None)
            if offline:
                logger.warning("klmonitor: SwanLab has no key, so the run stays offline")
        self._run = run
        self._swanlab = swanlab

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Log the numbers of a step."""
        self._run.log(dict(row), step=step)

    def alert(self, alert: Alert) -> None:
        """Log an alert's text at its step."""
        text = self._swanlab.Text(alert.text(), caption=alert.kind)
        self._run.log({ALERTS: text}, step=alert.step)

    def media(
        self, step: int, heat: Heat, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        """Log the table as text; SwanLab has no histogram, the page has them."""
        del heat
        if rows:
            lines = ["\t".join(str(cell) for cell in row) for row in (columns, *rows)]
            self._run.log({TOKENS: self._swanlab.Text("\n".join(lines))}, step=step)

    def page(self, html: str, step: int) -> None:
        """Log the page."""
        self._run.log({REPORT: self._swanlab.Html(html)}, step=step)

    def finish(self) -> None:
        """Leave the run to SwanLab, which finishes it at exit, and only on the main thread."""


def open_run() -> Any:
    """The run that somebody has opened in this process; None: none."""
    swanlab = sys.modules.get("swanlab")
    return None if swanlab is None else swanlab.run


def _has_key() -> bool:
    """Whether SwanLab can log in, or was told its mode, without asking anybody."""
    if any(os.environ.get(name) for name in ("SWANLAB_API_KEY", "SWANLAB_MODE")):
        return True
    return any((home / ".swanlab" / ".netrc").exists() for home in (Path.cwd(), Path.home()))


def is_open() -> bool:
    """Whether somebody has opened a run that we would go on with."""
    return open_run() is not None
