"""Alerts to the wandb run that the trainer logs to; its rows are the trainer's to write."""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Any

from klmonitor.report import Report
from klmonitor.sinks import WandbSink


class WandbAlerts:
    """A sink for alerts alone, silent until the trainer has opened a wandb run."""

    def __init__(self) -> None:
        """Not connected; wandb is not imported for this."""
        self._sink: WandbSink | None = None

    def __call__(self, report: Report) -> None:
        """Send the report's alerts."""
        if not report.alerts:
            return
        if self._sink is None:
            run = getattr(sys.modules.get("wandb"), "run", None)
            if run is None:
                return
            self._sink = WandbSink(run, metrics=())
        self._sink(report)

    def close(self) -> None:
        """Deliver what waits."""
        if self._sink is not None:
            self._sink.close()


def with_alerts(sinks: Collection[Any]) -> tuple[Any, ...]:
    """The sinks, and one for wandb alerts where none of them logs to wandb already."""
    if any(sink == "wandb" or isinstance(sink, WandbSink) for sink in sinks):
        return tuple(sinks)
    return (*sinks, WandbAlerts())
