"""Dated notes on a run's time line, of people and of the run itself, in a file of their own.

Whoever watches the run may append to the file while it goes on (``klmonitor note``).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from klmonitor.record.files import STEPS
from klmonitor.record.segments import last_of, step_of
from klmonitor.report import Row

NOTE, RESUME = "note", "resume"
LEARNING_RATE, REFERENCE_SYNC = "learning_rate", "reference_sync"
"""Kinds of notice; the last three are the run's own."""


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
    return last_of(directory / STEPS, step_of) or 0
