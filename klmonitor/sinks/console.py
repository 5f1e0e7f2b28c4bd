"""Alerts as single lines, in the log or on a stream."""

from __future__ import annotations

import logging
from typing import TextIO

from klmonitor.report import Alert, Report

LEVELS = {"info": logging.INFO, "warn": logging.WARNING, "critical": logging.ERROR}

logger = logging.getLogger("klmonitor")


class ConsoleSink:
    """One plain line an alert.

    Args:
        stream: where lines go; None: the log ``klmonitor``, at the level of the alert.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    def __call__(self, report: Report) -> None:
        """Write the report's alerts."""
        for alert in report.alerts:
            if self._stream is None:
                logger.log(LEVELS.get(alert.severity, logging.WARNING), "%s", line(alert))
            else:
                self._stream.write(line(alert) + "\n")
                self._stream.flush()

    def close(self) -> None:
        """Nothing waits; the stream is its owner's."""


def line(alert: Alert) -> str:
    """An alert as one line without control characters."""
    worse = " (worse)" if alert.phase == "worse" else ""
    head = f"klmonitor [{alert.severity}] step {alert.step} {alert.kind}{worse}"
    text = f"{head}: {alert.message}"
    return "".join(c for c in " ".join(text.split()) if c.isprintable())
