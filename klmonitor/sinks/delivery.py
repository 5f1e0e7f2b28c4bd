"""Where a report goes: the run's record first, then the sinks, on the main rank only.

What stalls costs its own rows; closing waits for all of them together, `CLOSE_SECONDS` at most.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from shlex import quote

from klmonitor.boundary import Boundary, HealthLog
from klmonitor.numbers.neighbours import NOTHING, Surroundings
from klmonitor.record import Achieved, RecordWriter
from klmonitor.record.around import Words, around_rows
from klmonitor.record.mutes import Mute
from klmonitor.record.notices import Notice
from klmonitor.record.rows import shown_tokens
from klmonitor.report import Alert, ExtremeToken, Health, Later, Report, Row
from klmonitor.sinks.base import FanOut, together
from klmonitor.sinks.tokentable import Annotate

CLOSE_SECONDS = 5.0
"""What closing may wait for all outputs together, seconds."""
FLUSH_SECONDS = 1.0
"""Of these, for the record before the sinks are closed."""


class Delivery:
    """A run's record and sinks; what fails is counted and stops nothing.

    Args:
        log: where failures are counted.
        record: None keeps nothing on disk.
        sinks: everything else.
        annotate: gives tokens their text before they are recorded.
        keep_tokens: whether extreme tokens are recorded.
        words: gives token ids their text, for what stood around extreme tokens.
        strict: raise what making a row raises.
    """

    def __init__(
        self,
        log: HealthLog,
        record: RecordWriter | None = None,
        sinks: FanOut | None = None,
        *,
        annotate: Annotate | None = None,
        keep_tokens: bool = True,
        words: Words | None = None,
        strict: bool = False,
    ) -> None:
        self._log = log
        self._boundary = Boundary("record", log, patience=None, strict=strict)
        self._around = Boundary(
            "what stood around extreme tokens", log, done_without="that stays unknown"
        )
        self._record = record
        self._sinks = sinks or FanOut([], log=log)
        self._annotate = annotate
        self._keep_tokens = keep_tokens
        self._words = words
        self._alerts = 0

    def health(self) -> Health:
        """What was counted so far, rows that the record lost among it."""
        errors, dropped = self._sinks.lost
        if self._record is not None:
            errors, dropped = errors + self._record.errors, dropped + self._record.dropped
        return self._log.read(errors, dropped)

    @property
    def run_dir(self) -> Path | None:
        """Where the record is, None where there is none."""
        return None if self._record is None else self._record.path

    @property
    def run_id(self) -> str:
        """What names the run in its record; empty: there is none."""
        return "" if self._record is None else self._record.run_id

    def described(self, health: Health) -> list[str]:
        """Where the record is, how much of it is written, and what was lost so far."""
        if self._record is None:
            return ["none"]
        step = self._record.written
        written = "nothing written yet" if step is None else f"written up to step {step}"
        lost = [f"{health.errors} errors caught"] if health.errors else []
        lost += [f"{health.dropped} rows or messages dropped"] if health.dropped else []
        return [f"{self._record.path}, {written}", *lost]

    def conclusion(self, last: int | None, health: Health) -> str:
        """What came of a run in a line: steps, alerts, what failed, and where to look."""
        steps = "no step" if last is None else f"up to step {last}"
        alerts = f"{self._alerts or 'no'} alert{'' if self._alerts == 1 else 's'}"
        lost = f", {health.errors} errors caught" if health.errors else ""
        lost += f", {health.dropped} rows or messages dropped" if health.dropped else ""
        command = "" if self.run_dir is None else f"klmonitor report {quote(str(self.run_dir))}"
        return f"{steps}: {alerts}{lost}{'; look: ' if command else ''}{command}"

    @property
    def mutes(self) -> tuple[Mute, ...]:
        """What people have muted in the run directory."""
        return () if self._record is None else self._record.mutes

    @property
    def keeps_tokens(self) -> bool:
        """Whether extreme tokens are recorded here."""
        return self._record is not None and self._keep_tokens

    def send(
        self, report: Report, ended: Sequence[Alert] = (), around: Surroundings = NOTHING
    ) -> None:
        """Record a report, its alerts, episodes that ended; the sinks get no muted alert.

        Args:
            report: a step's.
            ended: alerts.
            around: what is kept beside its extreme tokens, in the record alone.
        """
        if self._record is not None:
            self._boundary(self._write, self._record, report, ended, around)
        self._alerts += len(report.alerts)
        self._sinks(report.told)

    def _write(
        self,
        record: RecordWriter,
        report: Report,
        ended: Sequence[Alert],
        around: Surroundings,
    ) -> None:
        record.step(report)
        for alert in (*report.alerts, *ended):
            record.alert(alert)
        if self._keep_tokens:
            tokens: Sequence[ExtremeToken] = Later(partial(shown_tokens, report))
            try:
                tokens = self._annotate(tokens, report.phase) if self._annotate else tokens
            finally:
                more = () if around is NOTHING else self._beside(report, around)
                record.tokens(report.step, tokens, report.phase, more, around.places)

    def _beside(self, report: Report, around: Surroundings) -> Sequence[Row]:
        """Rows of what stood around the tokens that are shown, made on the record's thread."""
        return Later(lambda: self._around(self._rows_of, report, around) or ())

    def _rows_of(self, report: Report, around: Surroundings) -> Sequence[Row]:
        return around_rows(shown_tokens(report), around.tails, self._words)

    def note(self, notice: Notice) -> None:
        """Record a notice."""
        if self._record is not None:
            self._record.note(notice)

    def resumed(self, step: int | None, run_id: str) -> None:
        """What comes continues a run from the state that it had after a step."""
        if self._record is not None:
            self._record.resume(step, run_id)

    def checkpoint(self) -> None:
        """Have what was recorded survive a loss of power."""
        if self._record is not None:
            self._record.checkpoint()

    def flush(self, timeout: float) -> Achieved:
        """Wait until the record is written, at most `timeout` seconds."""
        return Achieved() if self._record is None else self._record.flush(timeout)

    def close(self) -> Achieved:
        """Write what is queued and close everything, side by side; safe to call again."""
        deadline = time.monotonic() + CLOSE_SECONDS
        closers: list[Callable[[], object]] = [self._sinks.close]
        if self._record is not None:
            self.flush(FLUSH_SECONDS)  # what a sink makes of the record shall be whole
            closing = partial(self._record.close, 0.7 * CLOSE_SECONDS)
            closers.append(partial(self._boundary.always, closing))
        in_time = together(closers, lambda: deadline - time.monotonic())
        health, found = self.health(), self.flush(0.0)
        done = found.done and in_time
        return replace(found, done=done, errors=health.errors, dropped=health.dropped)
