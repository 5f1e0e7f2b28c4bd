"""Every start is a run of its own: the last one in the run directory, others in ``earlier``."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from klmonitor.record.files import EARLIER, MUTES, NOTES, ROWS, RUN, STEPS, TENSORBOARD
from klmonitor.report import Row

TAIL = 2**20
"""Bytes at the end of a file that hold its last row."""


def has_rows(directory: Path) -> bool:
    """Whether somebody has recorded something there."""
    return any(_size(directory / name) for name in ROWS if name != NOTES)


def is_record(directory: Path) -> bool:
    """Whether a directory is the record of a run."""
    return any((directory / name).exists() for name in (RUN, STEPS))


def earlier_in(directory: Path) -> list[Path]:
    """The records of the earlier starts, the first one first."""
    try:
        names = [path.name for path in (directory / EARLIER).iterdir() if path.name.isdecimal()]
    except OSError:
        return []
    found = [directory / EARLIER / str(number) for number in sorted(map(int, names))]
    return [path for path in found if is_record(path)]


def set_aside(directory: Path, number: int) -> int:
    """Move the record in a directory to ``earlier``.

    Args:
        directory: of the record.
        number: of the start whose record it is; of one that nobody has numbered: 0.

    Returns:
        The number of the place. The file that has it is moved last: a move that was interrupted is
        finished by the next one.

    Raises:
        OSError: it cannot be moved.
    """
    earlier = directory / EARLIER
    if not number or (earlier / str(number) / RUN).exists():
        taken = [int(path.name) for path in earlier.glob("*") if path.name.isdecimal()]
        number = max(taken, default=0) + 1
    place = earlier / str(number)
    place.mkdir(parents=True, exist_ok=True)
    for name in (*ROWS, MUTES, TENSORBOARD, RUN):
        if os.path.lexists(directory / name):
            (directory / name).rename(place / name)
    return number


def new_id() -> str:
    """A name for a run that no other has."""
    return secrets.token_hex(8)


def last_of(path: Path, wanted: Callable[[Row], int | None]) -> int | None:
    """What the last row of a file gives that gives anything."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - TAIL, 0))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            row = json.loads(line)
            found = wanted(row) if isinstance(row, dict) else None
            if found is not None:
                return found
    return None


def step_of(row: Row) -> int | None:
    """The step of a report's row, None of another one."""
    return None if "row" in row else _int(row.get("step"))


def last_step_of(directory: Path) -> int | None:
    """The step of the last report of training, None before the first."""
    return last_of(
        directory / STEPS,
        lambda row: step_of(row) if row.get("phase", "train") == "train" else None,
    )


def last_sequence(directory: Path) -> int:
    """The largest sequence number of a record, -1 where there is none."""
    found = [last_of(directory / name, lambda row: _int(row.get("seq"))) for name in ROWS]
    return max((one for one in found if one is not None), default=-1)


def _int(value: object) -> int | None:
    return value if type(value) is int else None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
