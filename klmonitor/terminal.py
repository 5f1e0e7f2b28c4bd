"""Text that others wrote, made inert for a terminal: names, paths, messages, errors."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO


def inert(text: str) -> str:
    """One line in which nothing is done: control and invisible characters are shown as escapes.

    Also what turns the direction of writing, and halves of characters, which no stream takes.
    """
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


class InertStream(io.TextIOBase):
    """A stream that lets lines and tabs through, and of the rest only what is inert.

    Args:
        stream: where it goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text; what the stream's encoding lacks is escaped too."""
        safe = "".join(c if c in "\n\t" else _shown(c) for c in text)
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self._stream.write(safe.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Have it seen."""
        self._stream.flush()

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The descriptor of the stream."""
        return self._stream.fileno()


@contextmanager
def inert_output() -> Iterator[None]:
    """What is printed meanwhile does nothing to the terminal."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = InertStream(sys.stdout), InertStream(sys.stderr)
    try:
        yield
    finally:
        with suppress(ValueError, OSError):
            sys.stdout.flush()
        sys.stdout, sys.stderr = before
