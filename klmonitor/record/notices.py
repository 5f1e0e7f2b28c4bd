"""Dated notes on a run's time line, of people and of the run itself, in a file of their own.

Whoever watches the run may append to the file while it goes on (``klmonitor note``).
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from klmonitor.record.files import STEPS
from klmonitor.report import Row

NOTE, RESUME = "note", "resume"
LEARNING_RATE, REFERENCE_SYNC = "learning_rate", "reference_sync"
"""Kinds of notice; the last three are the run's own."""
TAIL = 2**20
"""Bytes at the end of ``steps.jsonl`` that hold its last row."""


@dataclass(frozen=True)
class Notice:
    """Something that happened.

    Attributes:
        step: the step that it belongs to: of a person's note the last one before, 0 if none was.
        text: what happened.
        kind: ``"note"`` of a person; ``"resume"``, ``"learning_rate"``, ``"reference_sync"``.
        time: seconds since the epoch.
    """

    step: int
    text: str
    kind: str = NOTE
    time: float = 0.0


def notice_to_row(notice: Notice) -> Row:
    """A notice as a JSON object."""
    return asdict(notice)


def notice_from_row(row: Row) -> Notice:
    """The inverse of `notice_to_row`."""
    kind, time = str(row.get("kind", NOTE)), float(row.get("time", 0.0))
    return Notice(int(row["step"]), str(row["text"]), kind, time)


def last_step(directory: Path) -> int:
    """The step of the last row of a record, 0 before the first."""
    try:
        with (directory / STEPS).open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - TAIL, 0))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return 0
    for line in reversed(lines):
        with suppress(ValueError, KeyError, TypeError):  # the last may still be on its way
            return int(json.loads(line)["step"])
    return 0
