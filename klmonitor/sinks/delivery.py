"""Where a report goes: the run's record first, then the sinks, on the main rank only.

What stalls costs its own rows; closing waits for all of them together, `CLOSE_SECONDS` at most.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

from klmonitor.notify import Notifier, Notify, parse_targets
from klmonitor.record import RecordWriter
from klmonitor.report import Alert, ExtremeToken, Later, Report
from klmonitor.sinks import (
    ConsoleSink,
    FanOut,
    PrometheusSink,
    Sink,
    TensorBoardSink,
    WandbSink,
    as_sink,
)
from klmonitor.sinks.tokentable import Annotate, shown_tokens

NAMES = ("tensorboard", "wandb", "prometheus")
CLOSE_SECONDS = 5.0
"""What closing may wait for all outputs together, seconds."""
FLUSH_SECONDS = 1.0
"""Of these, for the record before the sinks are closed."""


class Outputs:
    """A run's record and sinks; what fails is reported to `failed` and stops nothing.

    Args:
        record: None keeps nothing on disk.
        sinks: everything else.
        annotate: gives tokens their text before they are recorded.
        keep_tokens: whether extreme tokens are recorded.
        failed: told of a failure of the record, with its name and the cause.
    """

    def __init__(
        self,
        record: RecordWriter | None = None,
        sinks: FanOut | None = None,
        *,
        annotate: Annotate | None = None,
        keep_tokens: bool = True,
        failed: Callable[[str, Exception], None] = lambda name, error: None,
    ) -> None:
        self._record = record
        self._sinks = sinks or FanOut([])
        self._annotate = annotate
        self._keep_tokens = keep_tokens
        self._failed = failed

    @property
    def errors(self) -> int:
        """Calls of sinks that raised."""
        return self._sinks.errors

    def send(self, report: Report, ended: Sequence[Alert] = ()) -> None:
        """Write a report with its alerts, and episodes that ended; then the sinks."""
        if self._record is not None:
            try:
                self._write(self._record, report, ended)
            except Exception as error:  # noqa: BLE001  # a record must not stop training
                self._failed("record", error)
        self._sinks(report)

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
        threads = [threading.Thread(target=close, daemon=True) for close in closers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0.0))


def make_sinks(
    wanted: Collection[str | Sink | Callable[[Report], None]],
    run_dir: str | os.PathLike[str] | None,
    metrics: str | Sequence[str],
    notify: Notify = None,
    tokens: bool = True,
    annotate: Annotate | None = None,
) -> FanOut:
    """The sinks of a run behind one boundary, the console (for alerts) first.

    Args:
        wanted: names, sinks, or functions of a report.
        run_dir: TensorBoard files go to its ``tensorboard`` folder; None: ``runs/klmonitor``.
        metrics: which metrics the named sinks send.
        notify: who is told of alerts (see `klmonitor.notify`).
        tokens: whether trackers get extreme tokens.
        annotate: gives those their text; None: they have none.

    Raises:
        ValueError: a name is not known, or a target cannot work.
        TypeError: something is neither a sink nor a function.
    """
    sinks: list[Sink] = [ConsoleSink()]
    for sink in wanted:
        if not isinstance(sink, str):
            sinks.append(as_sink(sink, metrics))
        elif sink == "tensorboard":
            log_dir = Path(run_dir) / "tensorboard" if run_dir else Path("runs/klmonitor")
            sinks.append(TensorBoardSink(log_dir, metrics=metrics))
        elif sink == "wandb":
            sinks.append(
                WandbSink(metrics=metrics, run_dir=run_dir, tokens=tokens, annotate=annotate)
            )
        elif sink == "prometheus":
            sinks.append(PrometheusSink(metrics=metrics))
        else:
            raise ValueError(f"unknown sink {sink!r}: name {', '.join(NAMES)}, or pass a function")
    targets = parse_targets(notify)
    if targets:
        sinks.append(Notifier(targets, run="" if run_dir is None else str(run_dir)))
    return FanOut(sinks)
