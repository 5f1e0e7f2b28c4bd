"""Records as columns, read while they grow, and what the page asks of them.

runs                          -> {"runs": [name, ...]}
data?run=0&rows=80&alerts=4&generation=0     -> what came since (see `RunColumns.data`)
step?run=0&step=60            -> {"explain": {pair: text}, "tokens": [...]}
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from klmonitor.dashboard.columns import RunColumns
from klmonitor.record import MUTES, RUN, STEPS
from klmonitor.record.files import EARLIER
from klmonitor.record.live import LiveRecord
from klmonitor.record.mutes import MuteFile
from klmonitor.record.segments import earlier_in, is_record
from klmonitor.report import Row


class Source(Protocol):
    """Where runs come from."""

    def runs(self) -> Sequence[RunColumns]:
        """The runs as they are now, always in the same order, new ones last."""


class RecordSource:
    """The records in some directories.

    Args:
        paths: run directories, or directories in which they lie.
        tokens_text: whether the text of tokens may be shown.
        earlier: whether the records of earlier starts in them are shown too.

    Raises:
        FileNotFoundError: a path holds no record.
    """

    def __init__(
        self,
        paths: Iterable[str | os.PathLike[str]],
        tokens_text: bool = False,
        earlier: bool = False,
    ) -> None:
        found = [d for path in paths for d in find_records(Path(path), earlier)]
        directories = list(dict.fromkeys(found))
        names = run_names(directories)
        self._readers = [
            _Reader(directory, RunColumns(name, tokens_text))
            for directory, name in zip(directories, names, strict=True)
        ]

    def runs(self) -> Sequence[RunColumns]:
        """The runs, with all that has been written by now."""
        return [reader.poll() for reader in self._readers]


class _Reader:
    def __init__(self, directory: Path, columns: RunColumns) -> None:
        self._columns, self._directory = columns, directory
        self._record, self._mutes = LiveRecord(directory), MuteFile(directory / MUTES)

    def poll(self) -> RunColumns:
        columns = self._columns
        self._record.poll(columns)
        columns.meta, columns.starts = self._record.run.meta, self._record.run.starts
        self._mutes.look()
        columns.mutes = self._mutes.mutes
        columns.remarks = self._record.remarks
        columns.earlier = len(earlier_in(self._directory))
        return columns


def find_records(path: Path, earlier: bool = False) -> list[Path]:
    """The record in a directory, or those below it.

    Args:
        path: the directory.
        earlier: whether the records of earlier starts are among them, before the last one.

    Raises:
        FileNotFoundError: there is none.
    """
    if is_record(path):
        return [*(earlier_in(path) if earlier else ()), path]
    below = sorted({file.parent for file in path.rglob(STEPS)}) if path.is_dir() else []
    last = [one for one in below if EARLIER not in one.relative_to(path).parts]
    found = [one for record in last for one in find_records(record, earlier)]
    if not found:
        raise FileNotFoundError(
            f"no record in {path}: expected {RUN} or {STEPS}; "
            "give the directory that was the run's run_dir"
        )
    return found


def run_names(directories: Sequence[Path]) -> list[str]:
    """Short names that tell runs apart: without a last ``klmonitor``, and what all begin with."""
    whole = [path.absolute() for path in directories]
    parts = [p.parts[:-1] if p.name == "klmonitor" else p.parts for p in whole]
    shared = 0
    while len(parts) > 1 and len({p[: shared + 1] for p in parts}) == 1:
        shared += 1
        if any(len(p) <= shared + 1 for p in parts):
            break
    if len(parts) == 1:
        return [parts[0][-1]]
    return ["/".join(p[shared:]) or p[-1] for p in parts]


def overview(source: Source) -> Row:
    """Names of the runs."""
    return {"runs": [run.name for run in source.runs()]}


def answer(source: Source, question: str, query: Mapping[str, str]) -> bytes:
    """The answer as JSON.

    Raises:
        LookupError: there is no such question or run.
        ValueError: a number is none.
    """
    if question == "runs":
        return encode(overview(source))
    number = int(query.get("run", "0"))
    runs = source.runs()
    if not 0 <= number < len(runs):
        raise LookupError(f"no run {number}: there are {len(runs)}")
    run = runs[number]
    if question == "data":
        wanted = (int(query.get(key, "0")) for key in ("rows", "alerts", "generation"))
        return encode(run.data(*(max(value, 0) for value in wanted)))
    if question == "step":
        return encode(run.details(int(query.get("step", "0"))))
    raise LookupError(f"no answer to {question!r}")


def encode(row: Row) -> bytes:
    """JSON as bytes; what JSON lacks becomes text."""
    return json.dumps(row, separators=(",", ":"), default=str).encode()
