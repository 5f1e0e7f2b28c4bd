"""What people hold of a run, as rows: objects of column -> value, in the order of the file.

- CSV (tab-separated too), and JSON one object a line: exports and histories of trackers, verl's
  file logger (``{"step": 1, "data": {...}}``);
- JSON: a list of objects, an object that holds one (``log_history`` of ``trainer_state.json``), or
  an object of columns;
- parquet, as `klmonitor export` writes it;
- TensorBoard's event files;
- anything else as a trainer's console log (`klmonitor.replay.console`).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from klmonitor.record.jsonl import skipped_remark
from klmonitor.replay.console import printed_rows
from klmonitor.replay.parquet import parquet_rows
from klmonitor.report import Row

EVENTS = "events.out.tfevents."
"""How the name of an event file begins."""
STATE = "trainer_state.json"
WANDB = b":W&B"
"""How wandb's own file of a run begins."""
CSV, LINES = (".csv", ".tsv"), (".jsonl", ".ndjson")
PARQUET = ".parquet"
SERIES = (*CSV, *LINES, ".json")
"""Suffixes of files that a directory is searched for."""


class Rows(list[Row]):
    """Rows, and what there is to know of their file.

    Attributes:
        remarks: lines that were skipped, in words.
    """

    remarks: tuple[str, ...] = ()


def read_rows(path: Path) -> Rows:
    """The rows of a file, or of the event files of a directory; lines that are none are skipped.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds no rows, or none that are understood; the message has the remedy.
    """
    try:
        rows = _rows(path)
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply to be rows") from None
    if not rows:
        raise ValueError(
            f"{path} has no rows: give a run directory, trainer_state.json, a console log, event "
            "files, a CSV or a JSON-lines file"
        )
    return rows if isinstance(rows, Rows) else Rows(rows)


def _rows(path: Path) -> list[Row]:
    suffix = path.suffix.lower()
    if path.is_dir():
        return _events(sorted(path.glob(f"{EVENTS}*")))
    if suffix == PARQUET:
        return parquet_rows(path)
    if path.name.startswith(EVENTS):
        return _events([path])
    if suffix in CSV:
        return _csv(path, "\t" if suffix == ".tsv" else ",")
    with path.open("rb") as file:
        if file.read(len(WANDB)) == WANDB:
            raise ValueError(
                f"{path} is wandb's own file, which wandb alone reads: export the run "
                "(wandb sync, then in Python: json lines of wandb.Api().run(PATH).scan_history())"
            )
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    if suffix in LINES:
        return _json_lines(path, text)
    return _json(path, text) if suffix == ".json" else printed_rows(text)


def _csv(path: Path, delimiter: str) -> list[Row]:
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        try:
            return list(csv.DictReader(file, delimiter=delimiter))
        except csv.Error as error:
            raise ValueError(f"{path} is no CSV: {error}") from None


def _json_lines(path: Path, text: str) -> Rows:
    rows, skipped = Rows(), []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            skipped.append(number)
            continue
        data = row.get("data")
        rows.append({**row, **data} if isinstance(data, dict) else row)
    if skipped and not rows:
        raise ValueError(
            f"{path}, line {skipped[0]} is no JSON object, nor is another: give one a line, or CSV"
        )
    rows.remarks = (skipped_remark(path.name, len(skipped), skipped),) if skipped else ()
    return rows


def _json(path: Path, text: str) -> list[Row]:
    try:
        body = json.loads(text)
    except ValueError:
        return _json_lines(path, text)
    if isinstance(body, dict):
        lists = {key: value for key, value in body.items() if isinstance(value, list)}
        rows = max(filter(_are_rows, lists.values()), key=len, default=None)
        if rows is None and lists:
            return [
                dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=False)
            ]
        body = [body] if rows is None else rows
    if not _are_rows(body):
        raise ValueError(f"{path} holds no rows: give a list of JSON objects, or one a line")
    return list(body)


def _are_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _events(files: Iterable[Path]) -> list[Row]:
    """The scalars of TensorBoard's event files by step; what our own tab reads, where it is there.

    Raises:
        ValueError: tensorboard is not installed.
    """
    try:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    except ImportError:
        raise ValueError(
            "event files need tensorboard: pip install 'klmonitor[tensorboard]'"
        ) from None
    from klmonitor.record.checks import report_row
    from klmonitor.record.jsonl import UNREADABLE, parse
    from klmonitor.record.stepevent import TAG

    scalars: dict[int, Row] = {}
    ours: list[Row] = []
    for file in files:
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.tag == TAG and value.tensor.string_val:
                    with suppress(*UNREADABLE):  # what is none of ours is left to its own reader
                        ours.append(report_row(parse(value.tensor.string_val[0])))
                else:
                    row = scalars.setdefault(event.step, {"step": event.step})
                    row.update(_scalar(value.tag, value.tensor))
    return ours or list(scalars.values())


def _scalar(tag: str, tensor: Any) -> Mapping[str, float]:
    from tensorboard.util.tensor_util import make_ndarray

    if tensor.string_val or tensor.tensor_shape.dim:
        return {}
    return {tag: make_ndarray(tensor).item()}
