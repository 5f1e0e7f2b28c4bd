"""Files of one JSON object a line, written to survive a crash and read while they grow."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

from klmonitor.report import Row

T = TypeVar("T")

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


class LineFile:
    """A file that grows by whole lines.

    A line is one unbuffered ``write``: once `append` has returned, it survives ``kill -9``. A
    line that does not fit is cut back; where even that fails, the next one starts on a line of
    its own, so that a reader loses the torn one only. Opened at the first line: a path that
    stalls, stalls whoever appends.

    Args:
        path: created if it does not exist.
        mode: permission bits of a new file, before the umask.
    """

    def __init__(self, path: Path, mode: int = 0o666) -> None:
        self.path = path
        self._mode = mode
        self._descriptor: int | None = None
        self._torn = False

    def append(self, line: bytes) -> None:
        """Write one line, which brings its newline.

        Raises:
            OSError: it was not written. The next call opens the file again and tries.
        """
        try:
            descriptor = self._open()
            write_whole(descriptor, b"\n" + line if self._torn else line)
            self._torn = False
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; a later `append` opens it again."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)

    def _open(self) -> int:
        if self._descriptor is None:
            self._descriptor = os.open(self.path, _FLAGS, self._mode)
            self._torn = _is_torn(self.path, self._descriptor)
        return self._descriptor


def _is_torn(path: Path, descriptor: int) -> bool:
    """Whether the file ends inside a line."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def write_whole(descriptor: int, data: bytes) -> None:
    """Write all of `data` at the end of a file or, as far as the file system lets us, nothing.

    Raises:
        OSError: not all of it was written.
    """
    done = 0
    try:
        while done < len(data):
            taken = os.write(descriptor, data[done:])
            if not taken:
                raise OSError(errno.EIO, "the file takes no bytes")
            done += taken
    except OSError:
        if done:
            with suppress(OSError):
                os.ftruncate(descriptor, os.fstat(descriptor).st_size - done)
        raise


class LineReader(Generic[T]):
    """Reads a file of rows, also while another process appends to it.

    Args:
        path: may not exist yet.
        build: turns a row into what the caller wants.

    Attributes:
        bad_lines: lines that were no JSON object, or that `build` refused. A torn last line is
            not among them: it may still be on its way.
    """

    def __init__(self, path: Path, build: Callable[[Row], T]) -> None:
        self.path = path
        self.bad_lines = 0
        self._build = build
        self._offset = 0

    def poll(self) -> Iterator[T]:
        """What came since the last call, in the order of the file."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                if not line.strip():
                    continue
                try:
                    item = self._build(json.loads(line))
                except _UNREADABLE:
                    self.bad_lines += 1
                else:
                    yield item
