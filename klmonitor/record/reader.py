"""A record as it was read, finished or still growing; nothing here needs torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from klmonitor.record.files import ALERTS, NOTES, RUN, STEPS, TOKENS
from klmonitor.record.jsonl import LineReader
from klmonitor.record.notices import Notice, notice_from_row
from klmonitor.record.rows import alert_from_row, report_from_row, token_from_row
from klmonitor.record.runfile import NOTES_OF_PAIRS, PENALTY, read_run_file
from klmonitor.report import Alert, ExtremeToken, Report, Row


@dataclass(frozen=True)
class RunRecord:
    """A run's record as it was read.

    Attributes:
        meta: what the run was started with.
        starts: one entry a start, with ``time`` (seconds since the epoch), ``versions`` and
            ``rules``.
        reports: by step, with their alerts and extreme tokens; the tokens without their text.
        alerts: by step, ends of episodes included.
        tokens: step -> extreme tokens of training, with their text if it was recorded.
        notices: by step, of people and of the run.
        bad_lines: lines that could not be read, torn last lines aside.
    """

    meta: Mapping[str, object] = field(default_factory=dict)
    starts: tuple[Mapping[str, object], ...] = ()
    reports: list[Report] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)
    tokens: dict[int, list[ExtremeToken]] = field(default_factory=dict)
    notices: list[Notice] = field(default_factory=list)
    bad_lines: int = 0

    @property
    def timeline(self) -> list[Alert | Notice]:
        """Notices and alerts by step; of one step the notices first, as causes come first."""
        return sorted([*self.notices, *self.alerts], key=lambda event: event.step)


@dataclass(frozen=True)
class _Tokens:
    step: int
    phase: str
    tokens: list[ExtremeToken]


def _tokens_from_row(row: Row) -> _Tokens:
    tokens = [token_from_row(token) for token in row["tokens"]]
    return _Tokens(int(row["step"]), row.get("phase", "train"), tokens)


def read_run(path: str | os.PathLike[str]) -> RunRecord:
    """Read a record, finished or still growing.

    Where a resumed run went over steps again, the later row is the one that counts.

    Raises:
        FileNotFoundError: there is no record in that directory.
    """
    directory = Path(path)
    if not any((directory / name).exists() for name in (RUN, STEPS)):
        raise FileNotFoundError(
            f"no record in {directory}: expected {RUN} or {STEPS}; "
            "give the directory that was the run's run_dir"
        )
    steps = LineReader(directory / STEPS, report_from_row)
    tokens = LineReader(directory / TOKENS, _tokens_from_row)
    alerts = LineReader(directory / ALERTS, alert_from_row)
    notes = LineReader(directory / NOTES, notice_from_row)
    reports = {(r.step, r.phase): r for r in steps.poll()}
    extremes = {(t.step, t.phase): t.tokens for t in tokens.poll()}
    found = {(a.step, a.kind, a.pair, a.phase): a for a in alerts.poll()}
    notices = {(n.step, n.kind, n.text): n for n in notes.poll()}
    run = read_run_file(directory / RUN)
    meta = run.get("meta", {})
    by_step = sorted(found.values(), key=lambda alert: alert.step)
    return RunRecord(
        meta=meta,
        starts=tuple(run.get("starts", ())),
        reports=list(_join(reports, extremes, by_step, meta)),
        alerts=by_step,
        tokens={step: kept for (step, phase), kept in extremes.items() if phase == "train"},
        notices=sorted(notices.values(), key=lambda notice: notice.step),
        bad_lines=sum(file.bad_lines for file in (steps, tokens, alerts, notes)),
    )


def _join(
    reports: Mapping[tuple[int, str], Report],
    extremes: Mapping[tuple[int, str], list[ExtremeToken]],
    alerts: Sequence[Alert],
    meta: Mapping[str, Any],
) -> Iterator[Report]:
    """Reports by step, each with its tokens and, for training, the alerts that it opened."""
    penalties, notes = meta.get(PENALTY, {}), meta.get(NOTES_OF_PAIRS, {})
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
                penalty=penalties.get(name, ""),
                note=notes.get(name, ""),
            )
            for name, pair in report.pairs.items()
        }
        raised = opened.get(report.step, ()) if report.phase == "train" else ()
        yield replace(report, pairs=pairs, alerts=tuple(raised))
