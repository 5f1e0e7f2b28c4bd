"""Runs as they were recorded: our own record, or a KL series exported from a tracker.

An export is a CSV file, or JSON objects one a line, with a column for the step and columns for
numbers. Full names (``kl/policy_ref/k3/mean``, also behind ``train/`` or ``run name - ``, as
wandb writes them) are taken as they are. Short names are one pair's: ``k3``, ``kl`` (TRL's is k3)
or TensorBoard's ``Value``; ``se``, ``k1``, ``tokens``. Any other column is ignored.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from klmonitor.pairs import PAIRS
from klmonitor.record import RUN, STEPS, read_run
from klmonitor.record.rows import as_float, report_from_row
from klmonitor.report import PairReport, Report, Row

FULL = re.compile(rf"(?:^|.*/)kl/({'|'.join(pair.name for pair in PAIRS)})/(.+)")
STEP_COLUMNS = ("klmonitor/step", "train/global_step", "global_step", "step", "_step", "index")
"""What counts the trainer's steps, the better name first: wandb's own step counts its rows."""
SHORT = {
    "k3/mean": ("k3", "k3/mean", "k3_mean", "kl", "kl/mean", "kl_mean", "value"),
    "k3/se": ("se", "k3/se", "k3_se", "kl_se", "stderr"),
    "k1/mean": ("k1", "k1/mean", "k1_mean"),
    "k1/se": ("k1/se", "k1_se"),
    "tokens": ("tokens", "n", "num_tokens"),
}
"""Metric -> short names that mean it."""
CHOICES = {"k3": "k3/mean", "se": "k3/se", "k1": "k1/mean", "tokens": "tokens"}
"""What the user may name a column for, beside ``step``."""


@dataclass(frozen=True)
class Recorded:
    """One run.

    Attributes:
        name: the path that was given.
        reports: by step, training alone.
    """

    name: str
    reports: Sequence[Report]


def load_run(
    path: str, columns: Mapping[str, str] | None = None, pair: str = "policy_ref"
) -> Recorded:
    """Read a run.

    Args:
        path: a run directory, the trainer's output directory above it, a ``steps.jsonl``, or an
            export (``.csv``, ``.jsonl``).
        columns: for an export whose names are not known here: what -> the column, with what one
            of step, k3, se, k1, tokens.
        pair: the pair of an export's short names.

    Raises:
        FileNotFoundError: there is nothing to read.
        ValueError: an export has no step or no k3, or two columns for one of them.
    """
    place = Path(path)
    if place.is_dir():
        nested = place / "klmonitor"
        if not any((place / name).exists() for name in (RUN, STEPS)) and nested.is_dir():
            place = nested
        reports: Iterable[Report] = read_run(place).reports
    else:
        rows = _csv(place) if place.suffix.lower() in (".csv", ".tsv") else _json_lines(place)
        if not rows:
            raise ValueError(
                f"{path} has no rows: give a run directory, a CSV or a JSON-lines file"
            )
        if "pairs" in rows[0]:
            reports = [report_from_row(row) for row in rows]
        else:
            reports = _series(path, rows, columns or {}, pair)
    by_step = {report.step: report for report in reports if report.phase == "train"}
    return Recorded(path, [by_step[step] for step in sorted(by_step)])


def _csv(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        return list(csv.DictReader(file, delimiter=delimiter))


def _json_lines(path: Path) -> list[Row]:
    rows = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise ValueError(
                    f"{path}, line {number} is no JSON object: give one a line, or CSV"
                )
            rows.append(row)
    return rows


def _series(
    path: str, rows: Sequence[Row], columns: Mapping[str, str], pair: str
) -> Iterator[Report]:
    names = list(dict.fromkeys(name for row in rows for name in row if name))
    for what, column in columns.items():
        if column not in names:
            raise ValueError(f"{path} has no column {column!r} for {what}: it has {_list(names)}")
    step = columns.get("step") or _step_column(path, names)
    metrics = _metric_columns(path, names, columns, pair)
    if not any(metric == "k3/mean" for _, metric in metrics):
        raise ValueError(
            f"{path} has no column for k3, only {_list(names)}: name it with --column k3=NAME"
        )
    for row in rows:
        found: dict[str, dict[str, float]] = {}
        for (of_pair, metric), column in metrics.items():
            if row.get(column) not in (None, ""):
                found.setdefault(of_pair, {})[metric] = _number(path, column, row[column])
        if found and row.get(step) not in (None, ""):
            number = int(_number(path, step, row[step]))
            pairs = {name: PairReport(name, values) for name, values in found.items()}
            yield Report(step=number, first_step=number, pairs=pairs)


def _step_column(path: str, names: Sequence[str]) -> str:
    lowered = {name.lower(): name for name in reversed(names)}
    for known in STEP_COLUMNS:
        if known in lowered:
            return lowered[known]
    raise ValueError(
        f"{path} has no column for the step, only {_list(names)}: name it with --column step=NAME"
    )


def _metric_columns(
    path: str, names: Sequence[str], columns: Mapping[str, str], pair: str
) -> dict[tuple[str, str], str]:
    """(pair, metric) -> the column that has it."""
    found = {(pair, CHOICES[what]): name for what, name in columns.items() if what != "step"}
    chosen = set(found)
    for name in names:
        key = _meaning(name, pair)
        if key is None or key in chosen:
            continue
        if key in found:
            what = next((what for what, metric in CHOICES.items() if metric == key[1]), "k3")
            raise ValueError(
                f"{path}: columns {found[key]!r} and {name!r} both are {key[1]} of {key[0]}: "
                f"choose with --column {what}=NAME"
            )
        found[key] = name
    return found


def _meaning(name: str, pair: str) -> tuple[str, str] | None:
    """Pair and metric that a column's name stands for, if any."""
    own = name.rpartition(" - ")[2].strip()
    if own.endswith(("__MIN", "__MAX")):
        return None
    full = FULL.fullmatch(own)
    if full:
        return full[1], full[2]
    short = own.lower().removeprefix("train/")
    return next(((pair, metric) for metric, known in SHORT.items() if short in known), None)


def _number(path: str, column: str, value: object) -> float:
    try:
        return as_float(value)  # type: ignore[arg-type]  # what is no number is caught here
    except (TypeError, ValueError):
        raise ValueError(f"{path}, column {column!r}: {value!r} is no number") from None


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
