"""Alerts as single lines, in the log or on a stream."""

from __future__ import annotations

import logging
from typing import TextIO

from klmonitor.record.notices import Notice
from klmonitor.report import Alert, Report
from klmonitor.terminal import inert

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


def line(alert: Alert | Notice) -> str:
    """An alert or a notice as one line in which control characters are shown as escapes."""
    if isinstance(alert, Notice):
        return _one_line(f"klmonitor step {alert.step} {alert.kind}: {alert.text}")
    worse = " (worse)" if alert.phase == "worse" else ""
    muted = ", muted" if alert.muted else ""
    head = f"klmonitor [{alert.severity}{muted}] step {alert.step} {alert.kind}{worse}"
    return _one_line(f"{head}: {alert.message}")


def _one_line(text: str) -> str:
    return inert(" ".join(text.split()))
