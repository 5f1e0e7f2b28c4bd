"""A record that may still grow, row by row: what every reader of one is built on.

Rows are looked at whole first (`klmonitor.record.checks`); what is none is skipped and counted. A
file that was cut short or replaced, and a new run in the directory, begin everything again.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from klmonitor.record.checks import (
    alert_of,
    mark_of,
    notice_of,
    of_this_version,
    report_row,
    sequence_of,
    tokens_row,
)
from klmonitor.record.files import ALERTS, NOTES, RUN, STEPS, TOKENS
from klmonitor.record.jsonl import LineReader
from klmonitor.record.marks import DROPPED, RESUMED, ROW, THINNED, Mark
from klmonitor.record.notices import LEARNING_RATE, REFERENCE_SYNC, Notice
from klmonitor.record.runfile import FORMAT, RunFile, read_run_file
from klmonitor.report import Alert, Row

T = TypeVar("T")

PASSING = (LEARNING_RATE, REFERENCE_SYNC)
"""Kinds of notice that go with the steps that were overwritten; what people said stays."""


class Receiver(Protocol):
    """Takes a record's rows as they come."""

    def clear(self) -> None:
        """Forget everything: the record begins again."""

    def cut(self, step: int, number: int) -> None:
        """Forget what rows before that number said of that step and later ones.

        All but notices that are not `PASSING`.
        """

    def add_row(self, row: Row) -> None:
        """A report, as `report_row` gives it."""

    def add_tokens(self, row: Row) -> None:
        """Tokens, as `tokens_row` gives them."""

    def add_alert(self, alert: Alert, number: int) -> None:
        """An alert, and its row's number."""

    def add_notice(self, notice: Notice, number: int) -> None:
        """A notice, and its row's number."""


class LiveRecord:
    """Hands what is new in a record to a receiver.

    Attributes:
        run: what ``run.json`` said when it was looked at last.
        marks: what happened to the record.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._steps = LineReader(directory / STEPS, _numbered(_report_or_mark))
        self._tokens = LineReader(directory / TOKENS, _numbered(tokens_row))
        self._alerts = LineReader(directory / ALERTS, _numbered(alert_of))
        self._notes = LineReader(directory / NOTES, _numbered(notice_of))
        self._readers = (self._tokens, self._alerts, self._notes, self._steps)
        self.run = RunFile()
        self._polled = False
        self._restart()

    def _restart(self) -> None:
        for reader in self._readers:
            reader.restart()
        self.marks: list[Mark] = []
        self._cuts: list[tuple[int, int]] = []
        self._numbers: dict[str, array[int]] = {}

    def poll(self, receiver: Receiver) -> None:
        """Hand over what came since.

        Raises:
            OSError: a file cannot be read.
        """
        before, self.run = self.run, read_run_file(self._directory / RUN)
        other = self._polled and before.id != self.run.id
        self._polled = True
        if other or any(reader.replaced() for reader in self._readers):
            self._restart()
            receiver.clear()
        for number, row in self._tokens.poll():
            self._note(TOKENS, number)
            if self._counts(number, row["step"]):
                receiver.add_tokens(row)
        for number, alert in self._alerts.poll():
            self._note(ALERTS, number)
            if self._counts(number, alert.step):
                receiver.add_alert(alert, number)
        for number, notice in self._notes.poll():
            self._note(NOTES, number)
            if notice.kind not in PASSING or self._counts(number, notice.step):
                receiver.add_notice(notice, number)
        for number, found in self._steps.poll():
            self._note(STEPS, number)
            if not isinstance(found, Mark):
                receiver.add_row(found)
                continue
            self.marks.append(found)
            if found.kind == RESUMED and found.step is not None:
                self._cuts.append((number, found.step))
                receiver.cut(found.step, number)

    def _note(self, name: str, number: int) -> None:
        if number >= 0:
            self._numbers.setdefault(name, array("q")).append(number)

    def _counts(self, number: int, step: int) -> bool:
        """Whether no later mark overwrites a row."""
        return not any(number < mark and step >= first for mark, first in self._cuts)

    # --- what there is to say of the record itself -----------------------------------------------
    @property
    def bad_lines(self) -> int:
        """Lines that were skipped."""
        return sum(reader.bad_lines for reader in self._readers)

    @property
    def exact_until(self) -> int | None:
        """The first step that was thinned; None: every step is there."""
        found = [mark.first for mark in self.marks if mark.first is not None]
        return min(found, default=None)

    @property
    def missing(self) -> int:
        """Rows that were written and are not there any more, skipped and thinned ones aside."""
        first = next((name for name in (TOKENS, ALERTS, NOTES, STEPS) if name in self._numbers), "")
        if not first or any(mark.kind == THINNED for mark in self.marks):
            return 0
        end = max(self._numbers[first])  # what was there when the first file was read
        there = {n for numbers in self._numbers.values() for n in numbers if n <= end}
        begin = min(there)
        return max(end + 1 - begin - len(there) - self.bad_lines, 0)

    @property
    def remarks(self) -> list[str]:
        """What a reader should know of the record, a sentence an item; nothing of a whole one."""
        found = [reader.remark for reader in (self._steps, *self._readers[:3]) if reader.remark]
        if self.run.format > FORMAT:
            found.append(
                f"{RUN}: of a newer klmonitor (format {self.run.format}, this reads {FORMAT}): "
                "what is not known here is left out"
            )
        if self.missing:
            found.append(f"{self.missing} rows were written and are missing")
        found += [mark.text for mark in self.marks if mark.kind == DROPPED]
        thinned = [mark for mark in self.marks if mark.kind == THINNED]
        if thinned and self.exact_until is not None:
            last = thinned[-1]
            found.append(Mark(THINNED, last.step, last.count, last.why, self.exact_until,
                              last.stride).text)  # fmt: skip
        return found


def _report_or_mark(row: Row) -> Row | Mark:
    return mark_of(row) if ROW in row else report_row(row)


def _numbered(build: Callable[[Row], T]) -> Callable[[Row], tuple[int, T]]:
    """A row's number and what it holds."""
    return lambda row: (sequence_of(of_this_version(row)), build(row))
