"""Where a report goes: the run's record first, then the sinks, on the main rank only.

What stalls costs its own rows; closing waits for all of them together, `CLOSE_SECONDS` at most.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from klmonitor.boundary import Boundary, HealthLog
from klmonitor.record import RecordWriter
from klmonitor.record.mutes import Mute
from klmonitor.record.notices import Notice
from klmonitor.report import Alert, ExtremeToken, Health, Later, Report
from klmonitor.sinks.base import FanOut, together
from klmonitor.sinks.tokentable import Annotate, shown_tokens

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
        strict: bool = False,
    ) -> None:
        self._log = log
        self._boundary = Boundary("record", log, patience=None, strict=strict)
        self._record = record
        self._sinks = sinks or FanOut([], log=log)
        self._annotate = annotate
        self._keep_tokens = keep_tokens

    def health(self) -> Health:
        """What was counted so far, rows that the record lost among it."""
        health = self._log.read()
        if self._record is None:
            return health
        lost = self._record.errors, self._record.dropped
        return replace(health, errors=health.errors + lost[0], dropped=health.dropped + lost[1])

    @property
    def mutes(self) -> tuple[Mute, ...]:
        """What people have muted in the run directory."""
        return () if self._record is None else self._record.mutes

    def send(self, report: Report, ended: Sequence[Alert] = ()) -> None:
        """Record a report, its alerts, episodes that ended; the sinks get no muted alert."""
        if self._record is not None:
            self._boundary(self._write, self._record, report, ended)
        self._sinks(report.told)

    def _write(self, record: RecordWriter, report: Report, ended: Sequence[Alert]) -> None:
        record.step(report)
        for alert in (*report.alerts, *ended):
            record.alert(alert)
        if self._keep_tokens:
            tokens: Sequence[ExtremeToken] = Later(partial(shown_tokens, report))
            try:
                tokens = self._annotate(tokens, report.phase) if self._annotate else tokens
            finally:
                record.tokens(report.step, tokens, report.phase)

    def note(self, notice: Notice) -> None:
        """Record a notice."""
        if self._record is not None:
            self._record.note(notice)

    def flush(self, timeout: float) -> None:
        """Wait until the record is written, at most `timeout` seconds."""
        if self._record is not None:
            self._record.flush(timeout)

    def close(self) -> None:
        """Write what is queued and close everything, side by side; safe to call again."""
        deadline = time.monotonic() + CLOSE_SECONDS
        closers: list[Callable[[], object]] = [self._sinks.close]
        if self._record is not None:
            self.flush(FLUSH_SECONDS)  # what a sink makes of the record shall be whole
            closers.append(partial(self._record.close, 0.7 * CLOSE_SECONDS))
        together(closers, lambda: deadline - time.monotonic())
