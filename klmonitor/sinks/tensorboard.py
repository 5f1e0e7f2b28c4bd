"""Scalars to TensorBoard: one event a report, written on a thread of its own."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any

from klmonitor.report import Report
from klmonitor.sinks.customscalars import layout_value
from klmonitor.sinks.eventfiles import MAX_BYTES, Event, EventFile, summary
from klmonitor.sinks.queued import QueuedSink
from klmonitor.sinks.selection import Metrics, check_metrics, select


class TensorBoardSink(QueuedSink):
    """Writes the chosen metrics as plain scalars, tagged with their names, and what the tab shows.

    All scalars of a report are one event. Into a directory of our own goes a layout for the tab
    Custom Scalars too, once, and again if there is a new pair. A disk that stalls or fills costs
    events, which are counted and reported once, never time of the caller.

    Args:
        log_dir: a directory for an event file of our own. Not the one that the trainer writes
            to: some loaders stop reading at the second file of a directory.
        writer: a ``SummaryWriter`` to share instead; it stays open.
        metrics: ``"core"``, ``"full"`` or a list of globs.
        max_bytes: what our event files may take; then old steps are thinned.

    Raises:
        ValueError: not exactly one of `log_dir` and `writer` is given, or `metrics` is wrong.
        ImportError: tensorboard is not installed.
        OSError: `log_dir` cannot be written.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None = None,
        writer: Any = None,
        metrics: Metrics = "core",
        max_bytes: int = MAX_BYTES,
    ) -> None:
        if (log_dir is None) == (writer is None):
            raise ValueError("TensorBoardSink needs a log_dir= of its own or a writer= to share")
        check_metrics(metrics)  # before a file is made
        self._target = _SharedWriter(writer) if log_dir is None else EventFile(log_dir, max_bytes)
        super().__init__(f"TensorBoard's {self._target.name}", metrics)
        self._laid_out: tuple[str, ...] = ()

    def __call__(self, report: Report) -> None:
        """Queue the report."""
        self._worker.submit(partial(self._write, report))

    def close(self, timeout: float = 5.0) -> None:
        """Write what waits, within `timeout` seconds."""
        if self._worker.close(timeout):
            self._target.close()

    def _write(self, report: Report) -> None:
        scalars = select(self._metrics, report)
        if scalars:
            shown = report if report.phase == "train" else None
            pairs = tuple(dict.fromkeys((*self._laid_out, *(shown.pairs if shown else ()))))
            layout = None
            if isinstance(self._target, EventFile) and pairs != self._laid_out:
                layout = layout_value(pairs, self._metrics)
            wall_time = report.time or time.time()
            self._target.add(Event(scalars, report.step, wall_time, shown, layout))
            self._laid_out = pairs


class _SharedWriter:
    """The trainer's ``SummaryWriter``: its file, its buffers, its life."""

    name = "shared writer"

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._is_torch = type(writer).__module__.startswith("torch.utils.tensorboard")

    def add(self, event: Event) -> None:
        if self._is_torch:
            found = summary(event.scalars, event.shown)
            self._writer._get_file_writer().add_summary(found, event.step, event.wall_time)
        else:  # the protocol buffers of other packages are types of their own
            for tag, value in event.scalars.items():
                self._writer.add_scalar(tag, value, event.step, event.wall_time)

    def close(self) -> None:
        """It is not ours to close."""
