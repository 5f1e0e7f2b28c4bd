"""Scalars to TensorBoard: one event a report, written on a thread of its own."""

from __future__ import annotations

import io
import itertools
import os
import socket
import time
from functools import partial
from pathlib import Path
from typing import Any

from klmonitor.background import Worker
from klmonitor.record.jsonl import write_whole
from klmonitor.record.stepevent import step_value
from klmonitor.report import Report
from klmonitor.sinks.customscalars import layout_value
from klmonitor.sinks.selection import Metrics, check_metrics, select

CAPACITY = 256
"""Reports that may wait for a slow disk."""

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
_file_number = itertools.count()


class TensorBoardSink:
    """Writes the chosen metrics as plain scalars, tagged with their names, and what the tab shows.

    All scalars of a report are one event. Into a directory of our own goes a layout for the tab
    Custom Scalars too, once, and again if there is a new pair. A disk that stalls or fills costs
    events, which are counted and reported once, never time of the caller.

    Args:
        log_dir: a directory for an event file of our own. Not the one that the trainer writes
            to: some loaders stop reading at the second file of a directory.
        writer: a ``SummaryWriter`` to share instead; it stays open.
        metrics: ``"core"``, ``"full"`` or a list of globs.

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
    ) -> None:
        if (log_dir is None) == (writer is None):
            raise ValueError("TensorBoardSink needs a log_dir= of its own or a writer= to share")
        check_metrics(metrics)
        self._metrics = metrics
        self._laid_out: tuple[str, ...] = ()
        self._target = _SharedWriter(writer) if log_dir is None else EventFile(log_dir)
        self._worker = Worker(f"TensorBoard's {self._target.name}", CAPACITY)

    @property
    def dropped(self) -> int:
        """Reports not tried, because too many were waiting."""
        return self._worker.dropped

    @property
    def errors(self) -> int:
        """Reports lost to errors."""
        return self._worker.errors

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
            self._target.add(scalars, report.step, wall_time, shown, layout)
            self._laid_out = pairs


class _SharedWriter:
    """The trainer's ``SummaryWriter``: its file, its buffers, its life."""

    name = "shared writer"

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._is_torch = type(writer).__module__.startswith("torch.utils.tensorboard")

    def add(
        self,
        scalars: dict[str, float],
        step: int,
        wall_time: float,
        shown: Report | None = None,
        layout: Any = None,
    ) -> None:
        if self._is_torch:
            summary = _summary(scalars, shown)
            self._writer._get_file_writer().add_summary(summary, step, wall_time)
        else:  # the protocol buffers of other packages are types of their own
            for tag, value in scalars.items():
                self._writer.add_scalar(tag, value, step, wall_time)

    def close(self) -> None:
        """It is not ours to close."""


class EventFile:
    """An event file that grows by whole events, made at the first one.

    TensorBoard's own writer gives up for good at its first error and raises it in a thread of
    its own; here, an event that could not be written is cut back and the next one is tried.
    """

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        _protocol()  # fails now, if it must
        directory = Path(log_dir)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if not os.access(directory, os.W_OK):
                raise PermissionError("permission denied")
        except OSError as error:
            raise OSError(
                f"cannot write TensorBoard events to {directory}: {error.strerror or error}; "
                "choose another log_dir"
            ) from error
        self._directory = directory
        self._size = 0
        self._descriptor: int | None = None
        self.path = self._fresh_path()
        self.name = f"event file {self.path}"

    def add(
        self,
        scalars: dict[str, float],
        step: int,
        wall_time: float,
        shown: Report | None = None,
        layout: Any = None,
    ) -> None:
        """Write one event: scalars, the report that the KL tab draws, a layout of the scalars.

        Raises:
            OSError: it was not written.
        """
        event_type, _, _ = _protocol()
        event = event_type(wall_time=wall_time, step=step, summary=_summary(scalars, shown, layout))
        try:
            descriptor = self._open()
            data = _frame(event)
            if not self._size:
                data = _frame(event_type(wall_time=wall_time, file_version="brain.Event:2")) + data
            write_whole(descriptor, data)
        except OSError:
            self.close()
            raise
        self._size += len(data)

    def _open(self) -> int:
        """The file; a new one if the last error left a torn event, where readers would stop."""
        if self._descriptor is None:
            self._descriptor = os.open(self.path, _FLAGS, 0o666)
            if os.fstat(self._descriptor).st_size != self._size:
                self.close()
                self.path, self._size = self._fresh_path(), 0
                self._descriptor = os.open(self.path, _FLAGS, 0o666)
        return self._descriptor

    def _fresh_path(self) -> Path:
        number = f"{next(_file_number):06d}"  # files are read in the order of their names
        place = f"{socket.gethostname()}.{os.getpid()}.{number}"
        return self._directory / f"events.out.tfevents.{int(time.time()):010d}.{place}.klmonitor"

    def close(self) -> None:
        """Close the file."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _summary(scalars: dict[str, float], shown: Report | None, layout: Any = None) -> Any:
    summary_type = _protocol()[1]
    values = [summary_type.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
    if shown is not None:
        values.append(step_value(shown))
    if layout is not None:
        values.append(layout)
    return summary_type(value=values)


def _frame(event: Any) -> bytes:
    """An event with the length and the checksums that an event file puts around it."""
    buffer = io.BytesIO()
    _protocol()[2](buffer).write(event.SerializeToString())
    return buffer.getvalue()


def _protocol() -> tuple[Any, Any, Any]:
    """``Event``, ``Summary`` and the framing of records, imported when they are needed."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError as error:
        raise ImportError(
            'TensorBoardSink needs tensorboard: pip install "klmonitor[tensorboard]"'
        ) from error
    return Event, Summary, RecordWriter
