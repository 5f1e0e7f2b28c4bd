"""Rows that a record lost, until one of its rows says so."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from klmonitor.boundary import HealthLog, say
from klmonitor.record.marks import DROPPED, Mark


class Losses:
    """What could not be written.

    Args:
        log: told while nothing can be written.

    Attributes:
        errors: how often a file failed.
    """

    def __init__(self, log: HealthLog) -> None:
        self.errors = 0
        self._log = log
        self._rows = self._told_dropped = 0
        self._why = ""
        self._after: int | None = None

    def lose(self, why: str, last: int | None) -> None:
        """A row is lost, after the step `last`."""
        if not self._rows:
            self._after = last
        self._rows += 1
        self._why = why

    def fail(self, error: OSError, path: Path, last: int | None) -> None:
        """A row is lost to a file that cannot be written."""
        why = error.strerror or str(error)
        if not self.errors:
            say("cannot write %s: %s; its rows are lost until that is mended", path, why)
        self._log.stop("the record", why)
        self.errors += 1
        self.lose(why, last)

    def tell(self, append: Callable[[Mark], object], dropped: int, last: int | None) -> None:
        """A row that says what was lost; where there is no room for it, the next one's turn.

        Args:
            append: writes a mark.
            dropped: rows that were not tried, so far.
            last: step that was written.
        """
        new = dropped - self._told_dropped
        with suppress(OSError):
            if new:
                append(Mark(DROPPED, last, new, "too many were waiting"))
                self._told_dropped += new
            if self._rows:
                append(Mark(DROPPED, self._after, self._rows, self._why))
                self._rows = 0
                self._log.resume("the record")
