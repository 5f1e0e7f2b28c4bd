"""The writer of a run's record: a thread of its own, one ``write`` a row."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from klmonitor.background import Worker
from klmonitor.record.files import ALERTS, MUTES, NOTES, RUN, STEPS, TOKENS
from klmonitor.record.jsonl import LineFile
from klmonitor.record.mutes import Mute, MuteFile
from klmonitor.record.notices import Notice, notice_to_row
from klmonitor.record.rows import alert_to_row, encode_report, encode_row, token_to_row
from klmonitor.record.runfile import note_start
from klmonitor.report import Alert, ExtremeToken, Report

logger = logging.getLogger("klmonitor")


class RecordWriter:
    """Writes a run's record, off the caller's thread.

    A directory that holds a record already is continued.

    Args:
        run_dir: created if it does not exist.
        meta: what describes the run, stored in ``run.json``; what JSON lacks becomes text.
        max_bytes: bytes that the rows may take. Past half of it rows come without histograms,
            at the limit they end.
        capacity: rows that may wait for a slow disk; more are dropped and counted.
        rules: the alert rules of this start, stored there too (see `settings_to_row`).

    Raises:
        OSError: the directory cannot be written.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        meta: Mapping[str, object] | None = None,
        *,
        max_bytes: int = 10**9,
        capacity: int = 256,
        rules: Mapping[str, object] | None = None,
    ) -> None:
        self.path = Path(run_dir)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            note_start(self.path / RUN, meta or {}, rules)
            sizes = [_writable_size(self.path / name) for name in (STEPS, TOKENS, ALERTS, NOTES)]
        except OSError as error:
            raise OSError(
                f"cannot keep a record in {self.path}: {error.strerror or error}; "
                "choose another run_dir, or run_dir=None to keep none"
            ) from error
        self._steps = LineFile(self.path / STEPS)
        self._tokens = LineFile(self.path / TOKENS, mode=0o600)
        self._alerts = LineFile(self.path / ALERTS)
        self._notes = LineFile(self.path / NOTES)
        self._mutes = MuteFile(self.path / MUTES)
        self._bytes = sum(sizes)
        self._max_bytes = max_bytes
        self._over_limit = 0
        self._write_errors = 0
        self._written: int | None = None
        self._closed = False
        self._worker = Worker(f"the record in {self.path}", capacity)

    @property
    def written(self) -> int | None:
        """The step of the last report whose row was written, None before the first."""
        return self._written

    @property
    def mutes(self) -> tuple[Mute, ...]:
        """What is muted in the run directory, as of the last report that was written."""
        return self._mutes.mutes

    @property
    def errors(self) -> int:
        """Rows lost to errors: a full disk, a stale handle, a value that JSON cannot hold."""
        return self._write_errors + self._worker.errors

    @property
    def dropped(self) -> int:
        """Rows not tried: too many were waiting, or `max_bytes` was reached."""
        return self._over_limit + self._worker.dropped

    @property
    def thinned(self) -> bool:
        """Whether rows come without histograms by now."""
        return self._bytes > self._max_bytes / 2

    def step(self, report: Report) -> None:
        """Record a report; its tokens and alerts go to `tokens` and `alert`."""
        self._worker.submit(partial(self._write_report, report))

    def tokens(self, step: int, tokens: Sequence[ExtremeToken], phase: str = "train") -> None:
        """Record the extreme tokens of a step; they are looked at later, on the writer's thread."""
        self._worker.submit(partial(self._write_tokens, step, tokens, phase))

    def alert(self, alert: Alert) -> None:
        """Record an opening, a worsening or an end."""
        self._worker.submit(
            lambda: self._write(self._alerts, encode_row(alert_to_row(alert))), now=True
        )

    def note(self, notice: Notice) -> None:
        """Record a notice."""
        self._worker.submit(
            lambda: self._write(self._notes, encode_row(notice_to_row(notice))), now=True
        )

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until every row had its turn, `timeout` seconds at most; False: it was not so."""
        return self._worker.flush(timeout)

    def close(self, timeout: float = 5.0) -> bool:
        """Write what waits and close the files, within `timeout` seconds; safe to call again.

        Returns:
            Whether every row had its turn.
        """
        deadline = time.monotonic() + timeout
        if not self._closed and self._worker.flush(timeout):
            self._worker.submit(self._close_files)
        self._closed = True
        return self._worker.close(max(deadline - time.monotonic(), 0.0))

    # --- on the worker's thread ------------------------------------------------------------
    def _write_report(self, report: Report) -> None:
        if self._write(self._steps, encode_report(report, histograms=not self.thinned)):
            self._written = report.step
        self._mutes.look()

    def _write_tokens(self, step: int, tokens: Sequence[ExtremeToken], phase: str) -> None:
        rows = [token_to_row(token) for token in tokens]
        self._write(self._tokens, encode_row({"step": step, "phase": phase, "tokens": rows}))

    def _write(self, file: LineFile, line: bytes) -> bool:
        if self._bytes + len(line) > self._max_bytes:
            if not self._over_limit:
                logger.warning(
                    "klmonitor: the record in %s reached its limit of %.3g MB: no more rows",
                    self.path,
                    self._max_bytes / 1e6,
                )
            self._over_limit += 1
            return False
        try:
            file.append(line)
        except OSError as error:
            if not self._write_errors:
                logger.warning(
                    "klmonitor: cannot write %s: %s; its rows are lost until that is mended",
                    file.path,
                    error.strerror or error,
                )
            self._write_errors += 1
            return False
        self._bytes += len(line)
        return True

    def _close_files(self) -> None:
        for file in (self._steps, self._tokens, self._alerts, self._notes):
            file.close()


def _writable_size(path: Path) -> int:
    """Bytes of a file that is there and may be appended to, 0 of one that is not there."""
    if not path.exists():
        return 0
    if not os.access(path, os.W_OK):
        raise PermissionError(f"{path.name} may not be written")
    return path.stat().st_size
