"""A record as it was read, finished or still growing; nothing here needs torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from klmonitor.numbers.neighbours import Neighbours
from klmonitor.record.around import AROUND, neighbours_from_rows
from klmonitor.record.files import RUN, STEPS
from klmonitor.record.live import PASSING, LiveRecord
from klmonitor.record.notices import Notice
from klmonitor.record.rows import report_from_row, token_from_row
from klmonitor.record.runfile import NOTES_OF_PAIRS, PENALTY
from klmonitor.record.segments import is_record
from klmonitor.report import Alert, ExtremeToken, Report, Row


@dataclass(frozen=True)
class RunRecord:
    """A run's record as it was read.

    Attributes:
        meta: what the run was started with.
        starts: one entry a start, with ``time`` (seconds since the epoch), ``versions`` and
            ``rules``; of a start that continued the run also ``after``, a step.
        reports: by step, with their alerts and extreme tokens; the tokens without their text.
        alerts: by step, ends of episodes included.
        tokens: step -> extreme tokens of training, with their text if it was recorded.
        neighbours: step -> what stood around extreme tokens, at steps that opened or worsened an
            alert; with text if that was recorded.
        notices: by step, of people and of the run.
        bad_lines: lines that could not be read, torn last lines aside.
        missing: rows that were written and are not there any more.
        exact_until: the first step that was thinned to stay within ``max_disk``; None: none was.
        remarks: what there is to know of the record itself, a sentence an item.
    """

    meta: Mapping[str, object] = field(default_factory=dict)
    starts: tuple[Mapping[str, object], ...] = ()
    reports: list[Report] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)
    tokens: dict[int, list[ExtremeToken]] = field(default_factory=dict)
    neighbours: dict[int, list[Neighbours]] = field(default_factory=dict)
    notices: list[Notice] = field(default_factory=list)
    bad_lines: int = 0
    missing: int = 0
    exact_until: int | None = None
    remarks: tuple[str, ...] = ()

    @property
    def timeline(self) -> list[Alert | Notice]:
        """Notices and alerts by step; of one step the notices first, as causes come first."""
        return sorted([*self.notices, *self.alerts], key=lambda event: event.step)


class Collected:
    """What a record holds, by key: of a step that comes again the later row counts."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.reports: dict[tuple[int, str], Report] = {}
        self.tokens: dict[tuple[int, str], list[ExtremeToken]] = {}
        self.around: dict[tuple[int, str], list[Neighbours]] = {}
        self.alerts: dict[tuple[int, str, str | None, str], Alert] = {}
        self.notices: dict[tuple[int, str, str], Notice] = {}
        self._numbers: dict[tuple[object, ...], int] = {}

    def cut(self, step: int, number: int) -> None:
        """Forget what was overwritten."""

        def gone(key: tuple[Any, ...]) -> bool:
            return key[0] >= step and self._numbers[key] < number

        self.reports = {key: one for key, one in self.reports.items() if key[0] < step}
        self.tokens = {key: one for key, one in self.tokens.items() if not gone(key)}
        self.around = {key: one for key, one in self.around.items() if key in self.tokens}
        self.alerts = {key: one for key, one in self.alerts.items() if not gone(key)}
        self.notices = {
            key: one
            for key, one in self.notices.items()
            if one.kind not in PASSING or not gone(key)
        }

    def add_row(self, row: Row) -> None:
        """A report."""
        report = report_from_row(row)
        self.reports[report.step, report.phase] = report

    def add_tokens(self, row: Row) -> None:
        """Tokens."""
        tokens = [token_from_row(token) for token in row["tokens"]]
        key = row["step"], row["phase"]
        self.tokens[key], self._numbers[key] = tokens, row["seq"]
        self.around[key] = neighbours_from_rows(tokens, row[AROUND])

    def add_alert(self, alert: Alert, number: int) -> None:
        """An alert."""
        key = alert.step, alert.kind, alert.pair, alert.phase
        self.alerts[key], self._numbers[key] = alert, number

    def add_notice(self, notice: Notice, number: int) -> None:
        """A notice."""
        key = notice.step, notice.kind, notice.text
        self.notices[key], self._numbers[key] = notice, number


def read_run(path: str | os.PathLike[str]) -> RunRecord:
    """Read a record, finished or still growing: that of the last start in the directory.

    Those before are in ``earlier/1``, ``earlier/2``, ... and read alike. Where a resumed run went
    over steps again, the later row is the one that counts.

    Raises:
        FileNotFoundError: there is no record in that directory.
    """
    directory = Path(path)
    if not is_record(directory):
        raise FileNotFoundError(
            f"no record in {directory}: expected {RUN} or {STEPS}; "
            "give the directory that was the run's run_dir"
        )
    live, found = LiveRecord(directory), Collected()
    live.poll(found)
    by_step = sorted(found.alerts.values(), key=lambda alert: alert.step)
    return RunRecord(
        meta=live.run.meta,
        starts=live.run.starts,
        reports=list(_join(found.reports, found.tokens, by_step, live.run.meta)),
        alerts=by_step,
        tokens={step: kept for (step, phase), kept in found.tokens.items() if phase == "train"},
        neighbours={
            step: kept for (step, phase), kept in found.around.items() if phase == "train" and kept
        },
        notices=sorted(found.notices.values(), key=lambda notice: notice.step),
        bad_lines=live.bad_lines,
        missing=live.missing,
        exact_until=live.exact_until,
        remarks=tuple(live.remarks),
    )


def _join(
    reports: Mapping[tuple[int, str], Report],
    extremes: Mapping[tuple[int, str], list[ExtremeToken]],
    alerts: Sequence[Alert],
    meta: Mapping[str, Any],
) -> Iterator[Report]:
    """Reports by step, each with its tokens and, for training, the alerts that it opened."""
    said = (meta.get(PENALTY), meta.get(NOTES_OF_PAIRS))
    penalties, notes = (one if isinstance(one, dict) else {} for one in said)
    opened: dict[int, list[Alert]] = {}
    for alert in alerts:
        if alert.phase != "end":
            opened.setdefault(alert.step, []).append(alert)
    for key, report in sorted(reports.items(), key=lambda item: item[0][0]):
        mine = [t if t.text is None else replace(t, text=None) for t in extremes.get(key, ())]
        pairs = {
            name: replace(
                pair,
                extremes=tuple(token for token in mine if token.pair == name),
                penalty=str(penalties.get(name, "")),
                note=str(notes.get(name, "")),
            )
            for name, pair in report.pairs.items()
        }
        raised = opened.get(report.step, ()) if report.phase == "train" else ()
        yield replace(report, pairs=pairs, alerts=tuple(raised))
