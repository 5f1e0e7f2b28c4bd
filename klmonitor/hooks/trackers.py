"""What a trainer's own trackers get beside its rows: alerts, histograms, tables, the page."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from klmonitor.report import Report
from klmonitor.sinks.base import Sink
from klmonitor.sinks.table import TABLE, SinkKind, SinkOptions


class Extras:
    """A sink for these, silent until the trainer has opened a run; the rows are the trainer's.

    No tracker is imported for it.

    Args:
        kind: which tracker.
        options: what its sink is told; metrics are none.
    """

    def __init__(self, kind: SinkKind, options: SinkOptions) -> None:
        self._kind, self._options = kind, replace(options, metrics=())
        self._sink: Any = None

    @property
    def errors(self) -> int:
        """Reports lost to errors."""
        return int(getattr(self._sink, "errors", 0))

    @property
    def dropped(self) -> int:
        """Reports not tried, because the tracker hung."""
        return int(getattr(self._sink, "dropped", 0))

    def __call__(self, report: Report) -> None:
        """Send what is due."""
        if self._kind.is_open is None or not self._kind.is_open():
            return
        if self._sink is None:
            self._sink = self._kind.make(self._options)
        self._sink(report)

    def close(self) -> None:
        """Deliver what waits, and the page."""
        if self._sink is not None:
            self._sink.close()


def with_extras(
    sinks: Collection[Any], run_dir: Path | None = None, tokens: bool = True
) -> tuple[Any, ...]:
    """The sinks, and `Extras` for each tracker that none of them logs to already.

    Args:
        sinks: as the user gave them.
        run_dir: of the record whose page is sent at the end.
        tokens: whether extreme tokens are sent, without their text.
    """
    options = SinkOptions(run_dir, tokens=tokens)
    given = {_name(sink) for sink in sinks}
    missing = (kind for kind in TABLE if kind.is_open and kind.name not in given)
    extras: list[Sink] = [Extras(kind, options) for kind in missing]
    return (*sinks, *extras)


def _name(sink: Any) -> str:
    """Of the tracker that a sink logs to, as `TABLE` has it."""
    return sink if isinstance(sink, str) else str(getattr(sink, "name", "")).lower()
