"""Numbers, alerts as text, a histogram's rows as a chart, and the page to SwanLab."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from klmonitor.report import Alert
from klmonitor.sinks.media import Heat
from klmonitor.sinks.panels import TOKENS
from klmonitor.sinks.queued import library
from klmonitor.sinks.tracker import LibraryRun

ALERTS = "klmonitor/alerts"

logger = logging.getLogger("klmonitor")


class SwanlabRun(LibraryRun):
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
        super().__init__(swanlab, run or open_run() or _own_run(swanlab))

    def alert(self, alert: Alert) -> None:
        """Log an alert's text at its step."""
        text = self._library.Text(alert.text(), caption=alert.kind)
        self._run.log({ALERTS: text}, step=alert.step)

    def media(
        self, step: int, heat: Heat, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        """Log the table as text; SwanLab has no histogram, the page has them."""
        del heat
        if rows:
            lines = ["\t".join(str(cell) for cell in row) for row in (columns, *rows)]
            self._run.log({TOKENS: self._library.Text("\n".join(lines))}, step=step)

    def finish(self) -> None:
        """Leave the run to SwanLab, which finishes it at exit, and only on the main thread."""


def open_run() -> Any:
    """The run that somebody has opened in this process; None: none."""
    swanlab = sys.modules.get("swanlab")
    return None if swanlab is None else swanlab.run


def _own_run(swanlab: Any) -> Any:
    """A run of ours."""
    offline = not _has_key()
    project = os.environ.get("SWANLAB_PROJECT", "klmonitor")
    run = swanlab.init(project=project, mode="offline" if offline else None)
    if offline:
        logger.warning("klmonitor: SwanLab has no key, so the run stays offline")
    return run


def _has_key() -> bool:
    """Whether SwanLab can log in, or was told its mode, without asking anybody."""
    if any(os.environ.get(name) for name in ("SWANLAB_API_KEY", "SWANLAB_MODE")):
        return True
    return any((home / ".swanlab" / ".netrc").exists() for home in (Path.cwd(), Path.home()))


def is_open() -> bool:
    """Whether somebody has opened a run that we would go on with."""
    return open_run() is not None
