"""The four files of rows as one: numbered in common, within a limit, noticed when they are gone."""

from __future__ import annotations

import os
from pathlib import Path

from klmonitor.record.files import ALERTS, NOTES, ROWS, RUN, STEPS, TOKENS
from klmonitor.record.fresh import sync_directory
from klmonitor.record.jsonl import LineFile, MovedError
from klmonitor.record.marks import THINNED, Mark, mark_to_row
from klmonitor.record.rows import encode_row
from klmonitor.record.runfile import read_run_file
from klmonitor.record.thinning import TARGET, thin

FILES = {"steps": STEPS, "tokens": TOKENS, "alerts": ALERTS, "notes": NOTES, "marks": STEPS}
"""Kinds of rows, and where they go."""
AGAIN = 1.2
"""Times that what is left may grow to before it is thinned again, where no more could be taken."""


class LostFilesError(OSError):
    """What was written before is gone.

    Attributes:
        why: what has happened.
        rows: how many rows went.
        whole: the whole directory, not one file of it.
    """

    def __init__(self, why: str, rows: int, whole: bool) -> None:
        super().__init__(why)
        self.why, self.rows, self.whole = why, rows, whole


class RowFiles:
    """Appends numbered rows.

    Args:
        directory: of the files.
        limit: bytes that they may take together.

    Attributes:
        last: the number of the last row that was written; None: there is none.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        self._directory, self._limit = directory, limit
        self._files = {name: LineFile(directory / name, private=name == TOKENS) for name in ROWS}
        self._next = 0
        self._run_id = ""
        self._due = limit
        self._bytes = 0
        self._new: set[str] = set()
        self.last: int | None = None

    @property
    def used(self) -> bool:
        """Whether anything was written."""
        return self.last is not None

    def moved(self, directory: Path) -> RowFiles:
        """The same, elsewhere, from the beginning."""
        return RowFiles(directory, self._limit)

    def check(self) -> None:
        """Whether each file that is there may be written.

        Raises:
            OSError: one may not.
        """
        for name in ROWS:
            path = self._directory / name
            if path.exists() and not os.access(path, os.W_OK):
                raise PermissionError(f"{name} may not be written")
        if not os.access(self._directory, os.W_OK):
            raise PermissionError(13, "Permission denied")

    def start(self, number: int, run_id: str) -> None:
        """Number the rows of a run from here on; the files may be others than before."""
        self.close()
        self._next, self.last = number, number - 1 if number else None
        self._run_id = run_id
        self._bytes = self._size()
        self._due = self._limit

    def append(self, kind: str, row: bytes | Mark) -> None:
        """Write a row.

        Raises:
            LostFilesError: what was written before is gone, and so is this row.
            OSError: it was not written.
        """
        name = FILES[kind]
        line = encode_row(mark_to_row(row)) if isinstance(row, Mark) else row
        line = b'{"seq":%d,' % self._next + line[1:]
        if self._bytes + len(line) > self._due and kind != "marks":
            self._make_room()
            line = b'{"seq":%d,' % self._next + line[line.index(b",") + 1 :]
        file = self._files[name]
        known = file.lines
        try:
            file.append(line)
        except (MovedError, FileNotFoundError) as error:
            whole = read_run_file(self._directory / RUN).id != self._run_id
            lost = sum(one.lines for one in self._files.values()) if whole else known
            for one in self._files.values() if whole else (file,):
                one.close()
                one.lines = 0
            what = "the directory" if whole else name
            raise LostFilesError(f"{what} was removed or replaced", lost, whole) from error
        if not known:
            self._new.add(name)
        self.last = self._next
        self._next += 1
        self._bytes += len(line)

    def sync(self) -> None:
        """Have it survive a loss of power.

        Raises:
            OSError: it may not.
        """
        for file in self._files.values():
            file.sync()
        if self._new:
            sync_directory(self._directory)
            self._new.clear()

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def _make_room(self) -> None:
        """Thin old steps, and say so in a row.

        Raises:
            OSError: there is no room to do so.
        """
        steps, tokens, alerts = (self._directory / name for name in (STEPS, TOKENS, ALERTS))
        others = sum(_size(self._directory / name) for name in (ALERTS, NOTES))
        for name in (STEPS, TOKENS):
            self._files[name].close()
        found = thin(steps, tokens, alerts, max(int(TARGET * self._limit) - others, 0))
        self._bytes = self._size()
        self._due = max(self._limit, int(AGAIN * self._bytes))
        if found.first is not None:
            why = f"max_disk, {self._limit / 1e6:.3g} MB, was reached"
            mark = Mark(
                THINNED, found.step, found.count, why, first=found.first, stride=found.stride
            )
            self.append("marks", mark)

    def _size(self) -> int:
        return sum(_size(self._directory / name) for name in ROWS)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
