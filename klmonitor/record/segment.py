"""Where a start writes: a new run, or one that it continues."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from klmonitor.record.files import RUN, STEPS
from klmonitor.record.fresh import clear_parts
from klmonitor.record.runfile import RunFile, read_run_file, this_start, write_run_file
from klmonitor.record.segments import has_rows, last_sequence, new_id, set_aside


@dataclass(frozen=True)
class Segment:
    """One run in a directory, as its writer sees it.

    Attributes:
        path: the directory.
        run: what ``run.json`` says.
        continued: whether rows of it are there already.
        next_sequence: the number of the next row.
        first_step: of its first row, None: there is none yet, or it cannot be told.
    """

    path: Path
    run: RunFile
    continued: bool = False
    next_sequence: int = 0
    first_step: int | None = None

    @property
    def id(self) -> str:
        """What names it."""
        return self.run.id

    def renamed(self, run_id: str, after: int | None) -> Segment:
        """It goes on with a run whose rows are elsewhere, or nowhere.

        Raises:
            OSError: that cannot be written.
        """
        *starts, last = self.run.starts
        last = last if after is None else {**last, "after": after}
        run = replace(self.run, id=run_id, starts=(*starts, last))
        write_run_file(self.path / RUN, run)
        return replace(self, run=run)


def begin(
    directory: Path,
    meta: Mapping[str, object],
    rules: Mapping[str, object] | None,
    after: int | None = None,
) -> Segment:
    """A new run; what is there is set aside.

    Args:
        directory: where.
        meta: what describes it.
        rules: its alert rules.
        after: the step after which it continues a run whose record is not there.

    Raises:
        OSError: it cannot be.
    """
    clear_parts(directory)
    before = read_run_file(directory / RUN)
    number = max(before.segment, 1)
    if has_rows(directory):
        number = set_aside(directory, before.segment) + 1
    run = RunFile(new_id(), number, meta, (this_start(rules, after),))
    write_run_file(directory / RUN, run)
    return Segment(directory, run)


def resumed(
    directory: Path,
    meta: Mapping[str, object],
    rules: Mapping[str, object] | None,
    after: int | None,
    run_id: str,
) -> Segment:
    """The run that is there, if it is the one that is continued; else a new one.

    Raises:
        OSError: it cannot be written.
    """
    before = read_run_file(directory / RUN)
    if run_id and before.id and run_id != before.id:
        return begin(directory, meta, rules, after)
    clear_parts(directory)
    start = this_start(rules, after)
    run = RunFile(
        before.id or run_id or new_id(),
        max(before.segment, 1),
        meta,
        (*before.starts, start),
    )
    write_run_file(directory / RUN, run)
    return Segment(directory, run, True, last_sequence(directory) + 1, _first_step(directory))


def _first_step(directory: Path) -> int | None:
    """The step of the first report."""
    try:
        if not (directory / STEPS).is_file():
            return None
        with (directory / STEPS).open("rb") as file:
            row = json.loads(file.readline(2**22))
        return int(row["step"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
