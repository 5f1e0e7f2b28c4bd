"""Files of one JSON object a line, written to survive a crash and read while they grow."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

from klmonitor.report import Row

T = TypeVar("T")

_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
MOST_BYTES = 4 * 2**20
"""Bytes of the longest line that is read: a row takes some kilobytes."""
LISTED = 1000
"""Numbers of skipped lines that are kept; the others are counted."""
SAID = 10
"""Numbers of skipped lines that are said."""
COMPARED = 64
"""Bytes before a reader's place that tell it whether the file still is the one it has read."""
UNREADABLE = (
    ValueError, KeyError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError,
)  # fmt: skip


class MovedError(OSError):
    """What was written went into a file that is not at its path any more."""


class LineFile:
    """A file that grows by whole lines.

    A line is one unbuffered ``write``: once `append` has returned, it survives ``kill -9``. A
    line that does not fit is cut back; where even that fails, the next one starts on a line of
    its own, so that a reader loses the torn one only. Opened at the first line: a path that
    stalls, stalls whoever appends.

    Args:
        path: created if it does not exist.
        private: whether its owner alone may read it, whatever its permissions were; then it is
            no link either, and nobody else's.

    Attributes:
        lines: written since it was made, or opened first.
    """

    def __init__(self, path: Path, private: bool = False) -> None:
        self.path = path
        self.lines = 0
        self._private = private
        self._descriptor: int | None = None
        self._torn = False

    def append(self, line: bytes) -> None:
        """Write one line, which brings its newline.

        Raises:
            MovedError: it was written, to a file that somebody has removed or replaced.
            OSError: it was not written. The next call opens the file again and tries.
        """
        try:
            descriptor = self._open()
            write_whole(descriptor, b"\n" + line if self._torn else line)
            self._torn = False
            self._stay(descriptor)
        except OSError:
            self.close()
            raise
        self.lines += 1

    def sync(self) -> None:
        """Have what was written survive a loss of power.

        Raises:
            OSError: it may not.
        """
        if self._descriptor is not None:
            os.fsync(self._descriptor)

    def _stay(self, descriptor: int) -> None:
        """See that the file still is the one at its path."""
        mine = os.fstat(descriptor)
        try:
            there = self.path.stat()
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
            raise MovedError(errno.ESTALE, "it was removed or replaced")

    def close(self) -> None:
        """Close the file; a later `append` opens it again."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)

    def _open(self) -> int:
        if self._descriptor is None:
            flags, mode = (_FLAGS | _NO_LINK, 0o600) if self._private else (_FLAGS, 0o666)
            self._descriptor = os.open(self.path, flags, mode)
            if self._private:
                _keep_private(self._descriptor)
            self._torn = _is_torn(self.path, self._descriptor)
        return self._descriptor


def _keep_private(descriptor: int) -> None:
    """Take the file from everybody else.

    Raises:
        PermissionError: it is somebody else's.
    """
    status = os.fstat(descriptor)
    if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "it belongs to another user")
    if stat.S_IMODE(status.st_mode) & 0o077 and hasattr(os, "fchmod"):
        os.fchmod(descriptor, 0o600)


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
        build: turns a row into what the caller wants; what it refuses is skipped.

    Attributes:
        bad_lines: lines that were no JSON object, too long, or that `build` refused. A torn last
            line is not among them: it may still be on its way.
        skipped: the numbers of the first of them, from 1.
    """

    def __init__(self, path: Path, build: Callable[[Row], T]) -> None:
        self.path = path
        self._build = build
        self.restart()

    def restart(self) -> None:
        """Read from the beginning again."""
        self.bad_lines = 0
        self.skipped: list[int] = []
        self._offset = self._line = 0
        self._before = b""
        self._file: tuple[int, int] | None = None
        self._in_long_line = False

    @property
    def remark(self) -> str:
        """What was skipped, in words; empty: nothing."""
        if not self.bad_lines:
            return ""
        return skipped_remark(self.path.name, self.bad_lines, self.skipped)

    def replaced(self) -> bool:
        """Whether what was read is not what the file begins with now: cut short, or another one."""
        if not self._offset:
            return False
        try:
            with self.path.open("rb") as file:
                return not self._is_the_same(file)
        except FileNotFoundError:
            return True

    def _is_the_same(self, file: BinaryIO) -> bool:
        status = os.fstat(file.fileno())
        if (status.st_dev, status.st_ino) != self._file or status.st_size < self._offset:
            return False
        file.seek(self._offset - len(self._before))
        return file.read(len(self._before)) == self._before

    def poll(self) -> Iterator[T]:
        """What came since the last call, in the order of the file.

        Of a file that was cut short or replaced meanwhile nothing comes until `restart`.

        Raises:
            OSError: it cannot be read.
        """
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            if self._offset and not self._is_the_same(file):
                return
            status = os.fstat(file.fileno())
            self._file = status.st_dev, status.st_ino
            file.seek(self._offset)
            while line := file.readline(MOST_BYTES):
                whole = line.endswith(b"\n")
                if not whole and len(line) < MOST_BYTES:
                    return
                self._offset += len(line)
                self._before = line[-COMPARED:]
                began, self._in_long_line = not self._in_long_line, not whole
                self._line += began
                if not whole or not began:
                    if began:
                        self._skip()
                elif line.strip():
                    try:
                        item = self._build(parse(line))
                    except UNREADABLE:
                        self._skip()
                    else:
                        yield item

    def _skip(self) -> None:
        self.bad_lines += 1
        if len(self.skipped) < LISTED:
            self.skipped.append(self._line)


def skipped_remark(name: str, count: int, lines: Sequence[int]) -> str:
    """That lines of a file were skipped, and which."""
    numbers = ", ".join(str(number) for number in lines[:SAID])
    more = ", ..." if count > SAID else ""
    return f"{name}: {'1 line' if count == 1 else f'{count} lines'} skipped: {numbers}{more}"


def parse(line: bytes | str) -> Row:
    """A line as a JSON object.

    Raises:
        ValueError: it is none.
        RecursionError: it is too deep.
    """
    text = line if isinstance(line, str) else line.decode("utf-8")
    row = json.loads(text, parse_constant=_refuse)
    if not isinstance(row, dict):
        raise ValueError("no JSON object")
    return row


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")
