"""Runs as they were recorded: our own record, or a KL series that a trainer or a tracker left.

Columns with full names are taken as they are, before any short name (`klmonitor.replay.names`).
Columns without a number (text, histograms) are ignored. The step is that column, of those known,
which the rows with a KL have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from klmonitor.record import read_run
from klmonitor.record.checks import report_row
from klmonitor.record.jsonl import UNREADABLE
from klmonitor.record.marks import ROW
from klmonitor.record.rows import as_float, report_from_row
from klmonitor.replay.files import Rows, read_rows
from klmonitor.replay.names import (
    STEP_COLUMNS,
    Key,
    full_key,
    in_words,
    may_be_kl,
    short_key,
)
from klmonitor.replay.places import record_in, series_in
from klmonitor.report import PairReport, Report, Row

CHOICES = {"k3": "k3/mean", "se": "k3/se", "k1": "k1/mean", "tokens": "tokens"}
"""What the user may name a column for, beside ``step``."""
ROUNDING = 1e-6
"""Nats: float32's error in a k3 near 0. What is further below 0 is no k3."""


@dataclass(frozen=True)
class Curve:
    """One run.

    Attributes:
        name: the path that was given.
        reports: by step, training alone.
        remarks: what there is to know of what was read: lines that were skipped, steps that were
            thinned, rows that were lost.
    """

    name: str
    reports: Sequence[Report]
    remarks: Sequence[str] = ()


def load_run(
    path: str, columns: Mapping[str, str] | None = None, pair: str = "policy_ref"
) -> Curve:
    """Read a run.

    Args:
        path: a run directory, a trainer's output or checkpoint directory, or a file that
            `klmonitor.replay.files` reads.
        columns: for a file whose names are not known here: what -> the column, with what one
            of step, k3, se, k1, tokens.
        pair: the pair of a file's short names.

    Raises:
        FileNotFoundError: there is nothing to read.
        ValueError: there is no step, no k3 or no value, two columns are one of them, or what
            should be k3 is negative.
    """
    place = Path(path)
    record = record_in(place) if place.is_dir() else None
    remarks: Sequence[str] = ()
    if record is not None:
        run = read_run(record)
        reports, remarks = run.reports, run.remarks
        if not reports and remarks:
            raise ValueError(f"{path} holds no row that can be read: {'; '.join(remarks)}")
    elif place.is_dir():
        reports, remarks = _only(path, series_in(place), columns or {}, pair)
    else:
        reports, remarks = _read(place, columns or {}, pair)
    by_step = {report.step: report for report in reports if report.phase == "train"}
    if not any(report.pairs for report in by_step.values()):
        raise ValueError(f"{path} holds no KL in any of its {len(by_step)} training steps")
    return Curve(path, [by_step[step] for step in sorted(by_step)], remarks)


Read = tuple[list[Report], Sequence[str]]
"""Reports, and remarks on what they were read from."""


def _only(path: str, places: Sequence[Path], columns: Mapping[str, str], pair: str) -> Read:
    """The reports of the one place that has a KL: event files of one run may lie apart."""
    if len(places) == 1:
        return _read(places[0], columns, pair)
    read = {place: _read_if_known(place, columns, pair) for place in places}
    found = {place: one for place, one in read.items() if one[0]}
    if not found:
        return _read(places[0], columns, pair)  # which says what is wrong with it
    if len(found) > 1:
        names = ", ".join(str(place) for place in list(found)[:8])
        raise ValueError(
            f"{path} has event files with a KL in several directories: give one of {names}"
        )
    return next(iter(found.values()))


def _read_if_known(place: Path, columns: Mapping[str, str], pair: str) -> Read:
    """Nothing from a directory of other numbers."""
    try:
        return _read(place, columns, pair)
    except ValueError:
        return [], ()


def _read(place: Path, columns: Mapping[str, str], pair: str) -> Read:
    rows = read_rows(place)
    if any(isinstance(row.get("pairs"), dict) for row in rows):
        return _ours(place.name, rows)
    return list(_series(str(place), rows, columns, pair)), rows.remarks


def _ours(name: str, rows: Rows) -> Read:
    """The rows of a ``steps.jsonl`` that was given by itself."""
    found, skipped = [], []
    for number, row in enumerate(rows, 1):
        try:
            if ROW not in row:
                found.append(report_from_row(report_row(row)))
        except UNREADABLE:  # noqa: PERF203  # each row by itself
            skipped.append(number)
    said = f"{name}: {len(skipped)} rows skipped" if skipped else ""
    return found, (*rows.remarks, *([said] if said else ()))


def _series(
    path: str, rows: Sequence[Row], columns: Mapping[str, str], pair: str
) -> Iterator[Report]:
    names = list(dict.fromkeys(name for row in rows for name in row if name))
    for what, column in columns.items():
        if column not in names:
            raise ValueError(f"{path} has no column {column!r} for {what}: it has {_list(names)}")
    metrics = _metric_columns(path, rows, names, columns, pair)
    k3 = [column for (_, metric), column in metrics.items() if metric == "k3/mean"]
    step = columns.get("step") or _step_column(path, names, _with_k3(path, rows, names, k3))
    for column in k3:
        _check_k3(path, column, rows, names)
    for row in rows:
        number = _number(path, step, row[step]) if _is_there(row.get(step)) else math.nan
        pairs = _pairs(path, row, metrics)
        if pairs and math.isfinite(number):
            yield Report(step=int(number), first_step=int(number), pairs=pairs)


def _with_k3(
    path: str, rows: Sequence[Row], names: Sequence[str], k3: Sequence[str]
) -> Sequence[Row]:
    """The rows that have a k3.

    Raises:
        ValueError: there is no column for it, or no value in it.
    """
    if not k3:
        hint = _candidates(rows, names)
        raise ValueError(
            f"{path} has no column for k3, only {_list(names)}: name it with --column k3=NAME"
            + (f", perhaps {hint}" if hint else "")
        )
    there = [row for row in rows if any(_is_there(row.get(name)) for name in k3)]
    if not there:
        raise ValueError(f"{path} has no value of k3: {_list(k3)} empty in all {len(rows)} rows")
    return [row for row in there if any(math.isfinite(_loosely(row.get(n))) for n in k3)] or there


def _pairs(path: str, row: Row, metrics: Mapping[Key, str]) -> dict[str, PairReport]:
    """A row's numbers by pair; float32's rounding below 0 is taken out of k3."""
    found: dict[str, dict[str, float]] = {}
    for (pair, metric), column in metrics.items():
        if _is_there(row.get(column)):
            value = _number(path, column, row[column])
            value = max(value, 0.0) if metric == "k3/mean" else value
            found.setdefault(pair, {})[metric] = value
    return {name: PairReport(name, v) for name, v in found.items() if not _is_blank(v)}


def _step_column(path: str, names: Sequence[str], rows: Sequence[Row]) -> str:
    """The known column that most of these rows have, the better name first."""
    lowered = {name.lower(): name for name in reversed(names)}
    known = [lowered[name] for name in STEP_COLUMNS if name in lowered]
    if not known:
        raise ValueError(
            f"{path} has no column for the step, only {_list(names)}: "
            "name it with --column step=NAME"
        )
    return max(known, key=lambda name: sum(math.isfinite(_loosely(row.get(name))) for row in rows))


def _metric_columns(
    path: str,
    rows: Sequence[Row],
    names: Sequence[str],
    columns: Mapping[str, str],
    pair: str,
) -> dict[Key, str]:
    """(pair, metric) -> the column that has it: the user's choice, full names, then short ones."""
    chosen = {(pair, CHOICES[what]): name for what, name in columns.items() if what != "step"}
    full = _claims(path, rows, {name: full_key(name) for name in names}, chosen)
    if any(metric == "k3/mean" for _, metric in full):
        return full
    return _claims(path, rows, {name: short_key(name, pair) for name in names}, full) | full


def _claims(
    path: str, rows: Sequence[Row], keys: Mapping[str, Key | None], taken: Mapping[Key, str]
) -> dict[Key, str]:
    """What is taken, and what columns of numbers mean beside it.

    Raises:
        ValueError: two columns mean the same.
    """
    found = dict(taken)
    for name, key in keys.items():
        free = name not in taken.values() and key not in taken
        if key is None or not free or not _has_numbers(rows, name):
            continue
        if key in found:
            what = next((what for what, metric in CHOICES.items() if metric == key[1]), "k3")
            raise ValueError(
                f"{path}: columns {found[key]!r} and {name!r} both are {key[1]} of {key[0]}: "
                f"choose with --column {what}=NAME"
            )
        found[key] = name
    return found


def _check_k3(path: str, column: str, rows: Sequence[Row], names: Sequence[str]) -> None:
    """Refuse what is negative by more than rounding, and say what else there is."""
    values = [_number(path, column, row[column]) for row in rows if _is_there(row.get(column))]
    below = [value for value in values if value < -ROUNDING]
    if below:
        others = _candidates(rows, [name for name in names if name != column])
        raise ValueError(
            f"{path}: column {column!r} is no k3 but a signed one, as k1 is: {len(below)} of "
            f"{len(values)} values are below 0 (down to {min(below):.2g}), which no k3 is. "
            f"Name another with --column k3=NAME, this one if you like with --column k1={column}"
            + (f"; there are {others}" if others else "")
        )


def _candidates(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Columns that may be a KL, each with what it is."""
    found = []
    for name in filter(may_be_kl, names):
        values = [value for row in rows if math.isfinite(value := _loosely(row.get(name)))]
        if values:
            found.append(f"{name!r} ({in_words(name, values)})")
    return ", ".join(found)


def _is_blank(values: Mapping[str, float]) -> bool:
    """Whether several values all are nan: how a data frame writes that there are none."""
    return len(values) > 1 and all(map(math.isnan, values.values()))


def _is_there(value: object) -> bool:
    return value not in (None, "")


def _has_numbers(rows: Sequence[Row], name: str) -> bool:
    """Whether a column is one of numbers: all empty counts, text and objects do not."""
    there = [row[name] for row in rows if _is_there(row.get(name))]
    objects = any(isinstance(value, dict) or str(value).startswith("{") for value in there)
    return not there or (not objects and any(_is_number(value) for value in there))


def _is_number(value: object) -> bool:
    try:
        float(value)  # type: ignore[arg-type]  # what is no number is caught here
    except (TypeError, ValueError):
        return False
    return True


def _loosely(value: object) -> float:
    return float(value) if _is_number(value) else math.nan  # type: ignore[arg-type]


def _number(path: str, column: str, value: object) -> float:
    try:
        return as_float(value)  # type: ignore[arg-type]  # what is no number is caught here
    except (TypeError, ValueError):
        raise ValueError(f"{path}, column {column!r}: {value!r} is no number") from None


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
