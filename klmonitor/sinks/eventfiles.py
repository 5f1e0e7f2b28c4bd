"""Event files of our own for TensorBoard: whole events, within a limit."""

from __future__ import annotations

import io
import itertools
import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from klmonitor.record.fresh import replaced
from klmonitor.record.jsonl import write_whole
from klmonitor.record.stepevent import step_value
from klmonitor.report import Report

MAX_BYTES = 10**9
FILES = 8
"""Files that the limit is shared out over."""
MOST_HALVINGS = 40
VERSION = "brain.Event:2"
SUFFIX = ".klmonitor"
HEAD, TAIL = 12, 4
"""Bytes before an event (its length, and the checksum of that) and after it (its checksum)."""

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
_file_number = itertools.count()


class Event(NamedTuple):
    """What is written of a step.

    Attributes:
        scalars: tag -> value.
        step: of the report.
        wall_time: seconds since 1970.
        shown: the report that the KL tab draws.
        layout: of the scalars, for the tab Custom Scalars.
    """

    scalars: dict[str, float]
    step: int
    wall_time: float
    shown: Report | None = None
    layout: Any = None


class EventFile:
    """An event file that grows by whole events, made at the first one.

    TensorBoard's own writer gives up for good at its first error and raises it in a thread of
    its own; here, an event that could not be written is cut back and the next one is tried. A file
    that is large enough is followed by another; when all are too large together, old steps are
    thinned in those that are finished. A directory that somebody removed is made again.

    Args:
        log_dir: the directory.
        max_bytes: what the files may take together.
    """

    def __init__(self, log_dir: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> None:
        protocol()  # fails now, if it must
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
        self._max_bytes = max_bytes
        self._descriptor: int | None = None
        self.path = self._fresh_path()
        self.name = f"event file {self.path}"

    def add(self, told: Event) -> None:
        """Write one event.

        Raises:
            OSError: it was not written.
        """
        event_type, _, _ = protocol()
        found = summary(told.scalars, told.shown, told.layout)
        event = event_type(wall_time=told.wall_time, step=told.step, summary=found)
        if self._size > self._max_bytes / FILES:
            self.close()
            self.path, self._size = self._fresh_path(), 0
            thin_events(self._directory, self._max_bytes - self._max_bytes // FILES)
        try:
            if not self._add(event):
                self._directory.mkdir(parents=True, exist_ok=True)
                self.close()
                self.path, self._size = self._fresh_path(), 0
                self._add(event)
        except OSError:
            self.close()
            raise

    def _add(self, event: Any) -> bool:
        """Whether it went into a file that is still there."""
        try:
            descriptor = self._open()
        except FileNotFoundError:
            return False
        data = frame(event)
        if not self._size:
            data = frame(type(event)(wall_time=event.wall_time, file_version=VERSION)) + data
        write_whole(descriptor, data)
        self._size += len(data)
        return self.path.exists()

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
        return self._directory / f"events.out.tfevents.{int(time.time()):010d}.{place}{SUFFIX}"

    def close(self) -> None:
        """Close the file."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def thin_events(directory: Path, room: int) -> None:
    """Take old steps out of our event files until they fit: every second one, fourth, ...

    Steps with alerts stay, and so does what is no step. Readers that have read a file stay where
    they are, those to come find what is left.

    Raises:
        OSError: a file cannot be written; each is whole, as it was or thinned.
    """
    files = sorted(directory.glob(f"events.out.tfevents.*{SUFFIX}"))
    if sum(file.stat().st_size for file in files) <= room:
        return
    sizes: Counter[int] = Counter()
    for file in files:
        for step, data in _events(file):
            sizes[MOST_HALVINGS if step is None else _halvings(step)] += len(data)
    halvings = 1
    while halvings < MOST_HALVINGS and room < sum(
        size for zeros, size in sizes.items() if zeros >= halvings
    ):
        halvings += 1
    for file in files:
        with replaced(file, file.stat().st_mode & 0o777) as thinned:
            for step, data in _events(file):
                if step is None or _halvings(step) >= halvings:
                    thinned.write(data)


def _halvings(step: int) -> int:
    """How often 2 divides a step."""
    return (step & -step).bit_length() - 1 if step else MOST_HALVINGS


def _events(file: Path) -> Iterator[tuple[int | None, bytes]]:
    """Each event of a file with its step; None: it stays."""
    event_type = protocol()[0]
    with file.open("rb") as content:
        while len(head := content.read(HEAD)) == HEAD:
            (length,) = struct.unpack_from("<Q", head)
            body = content.read(length + TAIL)
            if len(body) < length + TAIL:
                return
            event = event_type.FromString(body[:length])
            stays = not event.summary.value or b'"alerts":[{' in body
            yield (None if stays else event.step), head + body


def summary(scalars: dict[str, float], shown: Report | None, layout: Any = None) -> Any:
    """Scalars, the report that the KL tab draws and a layout as a ``Summary``."""
    summary_type = protocol()[1]
    values = [summary_type.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
    if shown is not None:
        values.append(step_value(shown))
    if layout is not None:
        values.append(layout)
    return summary_type(value=values)


def frame(event: Any) -> bytes:
    """An event with the length and the checksums that an event file puts around it."""
    buffer = io.BytesIO()
    protocol()[2](buffer).write(event.SerializeToString())
    return buffer.getvalue()


def protocol() -> tuple[Any, Any, Any]:
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
