"""What several commands share: runs, rules, events, a record that is added to."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from klmonitor.replay.curve import Curve
    from klmonitor.replay.scoring import Event
    from klmonitor.report import Row
    from klmonitor.rules import Rules

WHAT = ("step", "k3", "se", "k1", "tokens")


def refuse(command: str, why: object) -> int:
    """Say why a command does nothing; the exit status of bad usage and of nothing readable."""
    from klmonitor.terminal import inert

    sys.stderr.write(f"klmonitor {command}: {inert(str(why))}\n")
    return 2


def add_earlier(parser: argparse.ArgumentParser) -> None:
    """--earlier."""
    parser.add_argument(
        "--earlier",
        action="store_true",
        help="also the earlier starts in a run's directory (RUN/earlier/1, ...), as other runs",
    )


def add_runs(parser: argparse.ArgumentParser) -> None:
    """RUN..., --column, --pair, --since, --events."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run or output directory, trainer_state.json, console log, event files, CSV, JSON",
    )
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="WHAT=NAME",
        help=f"the column that holds WHAT ({', '.join(WHAT)}) in a file that is no record",
    )
    parser.add_argument(
        "--pair", default="policy_ref", help="the pair of such a file (default: policy_ref)"
    )
    add_earlier(parser)
    parser.add_argument(
        "--since", type=int, metavar="STEP", help="count from this step on; earlier ones are learnt"
    )
    parser.add_argument(
        "--events", metavar="FILE", help="what really happened: CSV or JSON: start, end, kind, run"
    )


def load_runs(args: argparse.Namespace) -> list[Curve]:
    """The runs that `add_runs` names.

    Raises:
        ValueError, OSError: one cannot be read.
    """
    from klmonitor.pairs import PAIR_INDEX
    from klmonitor.replay.curve import load_run

    if args.pair not in PAIR_INDEX:
        raise ValueError(f"unknown pair {args.pair!r}: choose from {', '.join(PAIR_INDEX)}")
    columns = _columns(args.column)
    paths = [one for path in args.runs for one in _with_earlier(path, args.earlier)]
    return [load_run(path, columns, args.pair) for path in paths]


def _with_earlier(path: str, earlier: bool) -> list[str]:
    """A run, after the earlier starts in its directory where they are wanted."""
    from klmonitor.record.segments import earlier_in
    from klmonitor.replay.places import record_in

    record = record_in(Path(path)) if earlier else None
    return [*(map(str, earlier_in(record)) if record else ()), path]


def load_labels(args: argparse.Namespace) -> list[Event]:
    """The events that `add_runs` names; none where none are named."""
    from klmonitor.replay.scoring import load_events

    return load_events(args.events) if args.events else []


def chosen_rules(rules: str | None, preset: str | None) -> Rules:
    """A file of rules, on top of a preset; both may be missing.

    Raises:
        ValueError: the file cannot be read, or something in it is unknown.
    """
    from klmonitor.rules import parse_rules
    from klmonitor.rules.file import load_rules

    table: Rules = preset or "default"
    if rules:
        loaded = load_rules(rules)
        if isinstance(loaded, Mapping):
            table = {**loaded, "preset": preset} if preset else loaded
        else:
            raise ValueError(f"--rules {rules}: give a .toml or .json file; a preset is --preset")
    parse_rules(table)
    return table


def one_record(path: str) -> Path:
    """The one record in a directory or below it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: there are several.
    """
    from klmonitor.dashboard.source import find_records

    found = find_records(Path(path))
    if len(found) > 1:
        names = ", ".join(str(directory) for directory in found[:8])
        raise ValueError(f"{path} holds {len(found)} records: give one of {names}")
    return found[0]


def append_row(path: Path, row: Row) -> None:
    """Add a row to a file that others may be adding to.

    Raises:
        OSError: it cannot be written.
    """
    from klmonitor.record.jsonl import LineFile
    from klmonitor.record.rows import encode_row

    file = LineFile(path)
    file.append(encode_row(row))
    file.close()


def _columns(given: list[str]) -> dict[str, str]:
    columns = {}
    for one in given:
        what, equals, name = one.partition("=")
        if not equals or what not in WHAT:
            raise ValueError(f"--column {one}: give WHAT=NAME with one of {', '.join(WHAT)}")
        columns[what] = name
    return columns
