"""``klmonitor read``: what was found, where, and what it says."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from klmonitor import Alert, Monitor, Report
from klmonitor.commands.inputs import chosen_rules
from klmonitor.dashboard.source import find_records
from klmonitor_dumps.feed import feed, groups_ahead
from klmonitor_dumps.files import Reading, Record, find_files, read_records
from klmonitor_dumps.layout import ROLES, Layout, Row
from klmonitor_dumps.layouts import layout_of
from klmonitor_dumps.order import by_step
from klmonitor_dumps.problems import Problems, RowError
from klmonitor_dumps.sequences import Rollout, rollouts

SHOWN_ALERTS = 8


class Dump:
    """Some files of one layout.

    Args:
        files: in the order of their names.
        layout: which column is what.
        reading: how they are read.
    """

    def __init__(self, files: Sequence[Path], layout: Layout, reading: Reading) -> None:
        self.files = list(files)
        self.layout = layout
        self.reading = reading

    def rollouts(self) -> Iterator[Rollout]:
        """All sequences, by step."""
        return by_step(self.files, self._first_step, self._read)

    def _read(self, path: Path) -> Iterator[Rollout]:
        for record in read_records(path, self.reading):
            for row in self.layout.rows(record.row):
                yield from self._checked(row, path, record.where)

    def _checked(self, row: Row, path: Path, where: str) -> Iterator[Rollout]:
        step = self.layout.step_of(path.as_posix())
        try:
            yield from rollouts(row, self.layout, step, where, last_number(path))
        except RowError as error:
            self.reading.problems.left_out(error, where)

    def _first_step(self, path: Path) -> int | None:
        step = self.layout.step_of(path.as_posix())
        if step is not None:
            return step
        quiet = Dump([path], self.layout, Reading(Problems(lambda _: None), self.reading.trust))
        return next((row.step for row in quiet._read(path)), None)


def last_number(path: Path) -> int | None:
    """The last number in a file's name: its step, where nothing else says it."""
    found = re.findall(r"\d+", path.name.partition(".")[0])
    return int(found[-1]) if found else None


def open_dump(args: argparse.Namespace, problems: Problems) -> tuple[Dump, Record]:
    """The files that the arguments name, and their first record.

    Raises:
        ValueError, OSError: there are none, or none is readable, or nobody knows what is what.
    """
    files = list(dict.fromkeys(file for path in args.paths for file in find_files(path)))
    reading = Reading(problems, args.trust)
    first = next((r for f in files for r in read_records(f, Reading(problems, args.trust))), None)
    if first is None:
        raise ValueError("none of the files has a record that can be read")
    problems.counts.clear()  # they come again
    named = {role: value for role in ROLES if (value := getattr(args, role)) is not None}
    layout = layout_of(first.row, args.layout, named)
    return Dump(files, layout, reading), first


def run(args: argparse.Namespace) -> int:
    """Read, record, tell; the exit status."""
    problems = Problems(say)
    try:
        output = _fresh(args.output)
        rules = chosen_rules(args.rules, args.preset)
        dump, first = open_dump(args, problems)
        row = next(iter(dump.layout.rows(first.row)))
        print(f"{_count(len(dump.files), 'file')}: {dump.layout.title}; {dump.layout.said(row)}")
        with _progress(dump, args.quiet), _alerts_unsaid():
            monitor, tally = _feed(dump, output, rules, problems)
    except (ValueError, OSError) as error:
        say(f"klmonitor read: {error}")
        return 2
    for line in problems.lines():
        say(line)
    if monitor is None or not tally.steps:
        say("klmonitor read: no sequence could be read")
        return 2
    tally.tell(output, quiet=args.quiet)
    return 0


class Tally:
    """What the reports of a reading had.

    Attributes:
        steps: how many.
        tokens: pair -> tokens that counted.
        alerts: the first of them.
        dropped: rows of the record that were lost.
        worst: the report of the gravest alert, or the last.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.tokens: Counter[str] = Counter()
        self.alerts: list[Alert] = []
        self.opened = 0
        self.dropped = 0
        self.worst: Report | None = None
        self._grave = -1
        self._span = (0, 0)

    def add(self, report: Report) -> None:
        """Count a report."""
        self._span = (self._span[0] if self.steps else report.step, report.step)
        self.steps += 1
        self.dropped = report.health.dropped
        self.tokens.update({name: int(pair.tokens) for name, pair in report.pairs.items()})
        self.opened += len(report.alerts)
        self.alerts += report.alerts[: SHOWN_ALERTS - len(self.alerts)]
        grave = max((SEVERITIES.index(a.severity) for a in report.alerts), default=-1)
        if grave > self._grave or (self._grave < 0 and grave < 0):
            self._grave, self.worst = max(grave, self._grave), report

    def tell(self, output: Path, *, quiet: bool) -> None:
        """Print it."""
        first, last = self._span
        counts = ", ".join(f"{name} {count:,} tokens" for name, count in self.tokens.items())
        print(f"{_count(self.steps, 'step')} ({first} to {last}); {counts}")
        print(f"alerts: {self.opened or 'none'}")
        for alert in self.alerts:
            print(f"  step {alert.step:<7} {alert.severity:8} {alert.kind}: {alert.message}")
        if self.opened > len(self.alerts):
            print(f"  and {self.opened - len(self.alerts)} more")
        if self.worst is not None and not quiet:
            print(f"\n{self.worst.explain()}")
        print(f"\nrecord: {output}\n  $ klmonitor report {output}\n  $ klmonitor explain {output}")


SEVERITIES = ("info", "warn", "critical")


def _feed(dump: Dump, output: Path, rules: Any, problems: Problems) -> tuple[Monitor | None, Tally]:
    rows, tally = dump.rollouts(), Tally()
    groups, held = groups_ahead(rows)
    if not held:
        return None, tally
    monitor = Monitor(
        output,
        rules=rules,
        groups=groups,
        process_group=False,
        meta={
            "read_from": [str(path) for path in dump.files[:8]],
            "files": len(dump.files),
            "layout": dump.layout.name,
        },
    )
    if not monitor.active:
        raise ValueError("KLMONITOR_DISABLE is set: unset it, nothing is counted under it")
    try:
        for report in feed(monitor, chain(held, rows), problems):
            tally.add(report)
    finally:
        monitor.close()
    if monitor.errors or tally.dropped:
        say(f"klmonitor itself: {monitor.errors} failures, {tally.dropped} rows lost; see above")
    return monitor, tally


def _fresh(output: str) -> Path:
    """Where the record goes.

    Raises:
        ValueError: there is one.
    """
    path = Path(output)
    try:
        find_records(path)
    except FileNotFoundError:
        return path
    raise ValueError(f"{path} holds a record: choose another directory with -o")


@contextmanager
def _alerts_unsaid() -> Iterator[None]:
    """Alerts are told when all is read, and not as they come."""
    logger = logging.getLogger("klmonitor")

    def wanted(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("klmonitor [")

    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


@contextmanager
def _progress(dump: Dump, quiet: bool) -> Iterator[None]:
    """A bar of the bytes read, where somebody looks and rich is installed."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn
    except ImportError:
        yield
        return
    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        total = sum(path.stat().st_size for path in dump.files)
        task = bar.add_task("read", total=total)
        dump.reading.done = lambda count: bar.advance(task, count)
        yield


def say(text: str) -> None:
    """A line for people."""
    sys.stderr.write(f"{text}\n")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
