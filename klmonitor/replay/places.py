"""Where a run's numbers are in a directory: our record first, then what trainers leave.

A trainer's output directory holds our record in ``klmonitor``, ``trainer_state.json`` in itself or
in its checkpoints (the newest tells all steps so far), event files below it, or one file of rows.
"""

from __future__ import annotations

from pathlib import Path

from klmonitor.record import RUN, STEPS
from klmonitor.record.segments import is_record
from klmonitor.replay.files import EVENTS, SERIES, STATE


def record_in(path: Path) -> Path | None:
    """The record in a directory or in its ``klmonitor``, if there is one."""
    places = (path, path / "klmonitor")
    return next((place for place in places if is_record(place)), None)


def series_in(directory: Path) -> list[Path]:
    """What may hold the series of a directory without a record: a file, or directories of events.

    Raises:
        FileNotFoundError: there is nothing that is known.
        ValueError: there are several files of rows.
    """
    states = [directory / STATE, *_newest_first(directory)]
    for state in states:
        if state.exists():
            return [state]
    events = sorted({file.parent for file in directory.rglob(f"{EVENTS}*")})
    if events:
        return events
    known = (*SERIES, ".wandb")  # whose error says how to export it
    files = sorted(f for f in directory.iterdir() if f.is_file() and f.suffix.lower() in known)
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:8])
        raise ValueError(f"{directory} holds {len(files)} files of rows: give one of {names}")
    if not files:
        raise FileNotFoundError(
            f"no run in {directory}: expected {RUN} or {STEPS} there or in klmonitor/, {STATE} "
            f"there or in checkpoint-*/, {EVENTS}* below it, or one file of {', '.join(SERIES)}"
        )
    return files


def _newest_first(directory: Path) -> list[Path]:
    numbered = {
        int(place.name.removeprefix("checkpoint-")): place
        for place in directory.glob("checkpoint-*")
        if place.name.removeprefix("checkpoint-").isdecimal()
    }
    return [numbered[number] / STATE for number in sorted(numbered, reverse=True)]
