"""The writer of a run's record: a thread of its own, one ``write`` a row."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from klmonitor.background import Worker
from klmonitor.boundary import HealthLog, say
from klmonitor.numbers.places import Places
from klmonitor.record.achieved import Achieved
from klmonitor.record.around import encode_tokens
from klmonitor.record.files import MUTES
from klmonitor.record.lock import claim
from klmonitor.record.losses import Losses
from klmonitor.record.marks import DROPPED, RESUMED, Mark
from klmonitor.record.mutes import Mute, MuteFile
from klmonitor.record.notices import Notice, notice_to_row
from klmonitor.record.rowfiles import FILES, LostFilesError, RowFiles
from klmonitor.record.rows import alert_to_row, encode_report, encode_row
from klmonitor.record.segment import Segment, begin, resumed
from klmonitor.record.segments import has_rows, last_step_of
from klmonitor.report import Alert, ExtremeToken, Report, Row

SYNC_SECONDS = 5.0
"""Rows of the last so many seconds may be lost with the power."""
MAX_DISK = 10**9

logger = logging.getLogger("klmonitor")


class RecordWriter:
    """Writes a run's record, off the caller's thread.

    A directory that somebody else writes in is left to him: ``-2``, ``-3``, ... is put behind its
    name, and that is said. The record of an earlier start is set aside (``earlier/1``) when the
    first row comes, unless `resume` was called before: then it is continued.

    Args:
        run_dir: created if it does not exist.
        meta: what describes the run, stored in ``run.json``; what JSON lacks becomes text.
        max_bytes: bytes that the rows may take; when they are reached, old steps are thinned.
        capacity: rows that may wait for a slow disk; more are dropped and counted.
        rules: the alert rules of this start, stored there too (see `settings_to_row`).
        log: told while nothing can be written.

    Attributes:
        path: where the record is.

    Raises:
        OSError: the directory cannot be written.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        meta: Mapping[str, object] | None = None,
        *,
        max_bytes: int = MAX_DISK,
        capacity: int = 256,
        rules: Mapping[str, object] | None = None,
        log: HealthLog | None = None,
    ) -> None:
        wanted = Path(run_dir)
        self._log = log or HealthLog()
        self._meta, self._rules = dict(meta or {}), rules
        self._max_bytes = max_bytes
        self._losses = Losses(self._log)
        self._written: int | None = None
        self._first: int | None = None
        self._last: int | None = None
        self._resume: tuple[int | None, str] | None = None
        self._segment: Segment | None = None
        self._early: list[Notice] = []
        self._closed = self._unsynced = False
        self._synced_at = time.monotonic()
        self._synced: int | None = None
        self.alerts = 0
        try:
            self.path, self._lock = claim(wanted, self)
            self._files = RowFiles(self.path, max_bytes)
            self._files.check()
            if not has_rows(self.path):
                self._start(begin(self.path, self._meta, self._rules))
        except OSError as error:
            raise OSError(
                f"cannot keep a record in {wanted}: {error.strerror or error}; "
                "choose another run_dir, or run_dir=None to keep none"
            ) from error
        if self.path != wanted:
            say("another process writes in %s: this run's record is in %s", wanted, self.path)
        self._mutes = MuteFile(self.path / MUTES)
        self._worker = Worker(f"the record in {self.path}", capacity, idle=self._sync_if_due)

    @property
    def written(self) -> int | None:
        """The step of the last report whose row was written, None before the first."""
        return self._written

    @property
    def acknowledged(self) -> int | None:
        """The sequence number of the last row that was written, None before the first."""
        return self._files.last

    @property
    def run_id(self) -> str:
        """What names the run; empty before its first row in a directory with an earlier one."""
        if self._segment is not None:
            return self._segment.id
        return "" if self._resume is None else self._resume[1]

    @property
    def mutes(self) -> tuple[Mute, ...]:
        """What is muted in the run directory, as of the last report that was written."""
        return self._mutes.mutes

    @property
    def errors(self) -> int:
        """Rows lost to errors: a full disk, a stale handle, a value that JSON cannot hold."""
        return self._losses.errors + self._worker.errors

    @property
    def dropped(self) -> int:
        """Rows not tried, because too many were waiting."""
        return self._worker.dropped

    # --- on the caller's thread ----------------------------------------------------------------
    def resume(self, step: int | None, run_id: str = "") -> None:
        """What comes continues a run, from the state that it had after a step.

        Args:
            step: that step, None: unknown, the next report tells.
            run_id: of the run; empty: that of the directory's last one.
        """
        if self._segment is None or not self._files.used:
            self._resume = step, run_id
            if self._segment is not None and run_id:  # nobody has been here: it goes on here
                self._segment = self._segment.renamed(run_id, step)
        else:
            self._worker.submit(partial(self._mark_resumed, step, True), now=True, keep=True)

    def step(self, report: Report) -> None:
        """Record a report; its tokens and alerts go to `tokens` and `alert`."""
        self._begin()
        self._worker.submit(partial(self._write_report, report))

    def tokens(
        self,
        step: int,
        tokens: Sequence[ExtremeToken],
        phase: str = "train",
        around: Sequence[Row] = (),
        places: Mapping[str, Places] | None = None,
    ) -> None:
        """Record the extreme tokens of a step; they are looked at later, on the writer's thread.

        Args:
            step: which.
            tokens: of all pairs.
            phase: ``"train"`` or ``"eval"``.
            around: what stood around some of them (`klmonitor.record.around`).
            places: pair -> mean |d| by place, of a step with an alert.
        """
        self._begin()
        self._worker.submit(partial(self._write_tokens, step, tokens, phase, around, places or {}))

    def alert(self, alert: Alert) -> None:
        """Record an opening, a worsening or an end."""
        self._begin()
        self.alerts += alert.phase != "end"
        self._worker.submit(partial(self._write_alert, alert), now=True, keep=True)

    def note(self, notice: Notice) -> None:
        """Record a notice; one that comes before the first report waits for it."""
        if self._segment is None:
            self._early.append(notice)
        else:
            self._worker.submit(partial(self._write_notice, notice), now=True, keep=True)

    def checkpoint(self) -> None:
        """Have what was recorded survive a loss of power, as a state that is saved now will."""
        if self._segment is not None:
            self._worker.submit(self._sync, now=True)

    def flush(self, timeout: float = 5.0) -> Achieved:
        """Wait until every row had its turn, `timeout` seconds at most."""
        return self._achieved(self._worker.flush(timeout))

    def close(self, timeout: float = 5.0) -> Achieved:
        """Write what waits and close the files, within `timeout` seconds; safe to call again."""
        deadline = time.monotonic() + timeout
        if not self._closed:
            if self._early:
                self._begin()
            if self._worker.flush(timeout):
                self._worker.submit(self._close_files)
        self._closed = True
        done = self._worker.close(max(deadline - time.monotonic(), 0.0))
        if done:
            self._lock.release(self)
        return self._achieved(done)

    def retire(self) -> None:
        """Another writer of this process has the directory now."""
        self._worker.submit(self._files.close, now=True)
        self._worker.flush(1.0)

    def _achieved(self, done: bool) -> Achieved:
        return Achieved(
            done, self._files.last, self._synced, self.errors, self.dropped, str(self.path)
        )

    def _begin(self) -> None:
        """Before the first row: continue the record that is there, or set it aside."""
        if self._segment is not None or self._closed:
            return
        if self._resume is not None:
            found = resumed(self.path, self._meta, self._rules, *self._resume)
        else:
            found = begin(self.path, self._meta, self._rules)
        self._start(found)
        self._mutes = MuteFile(self.path / MUTES)
        if found.continued and self._resume is not None:
            self._worker.submit(partial(self._mark_resumed, self._resume[0], False))
        early, self._early = self._early, []
        for notice in early:
            self.note(notice)

    def _start(self, segment: Segment) -> None:
        self._segment = segment
        self._files.start(segment.next_sequence, segment.id)
        self._last = last_step_of(self.path) if segment.continued else None
        self._first = segment.first_step

    # --- on the worker's thread ----------------------------------------------------------------
    def _write_report(self, report: Report) -> None:
        if report.phase == "train":
            self._go_back(report.step)
        if self._write("steps", self._encoded(partial(encode_report, report))):
            self._written = report.step
            if report.phase == "train":
                self._last = report.step
                self._first = report.step if self._first is None else self._first
        self._mutes.look()
        self._sync_if_due()

    def _go_back(self, step: int) -> None:
        """A step that comes again without a resume: from the first one on it is a new start."""
        if self._last is None or step > self._last:
            return
        if self._first is not None and step <= self._first and step < self._last:
            self._sync()
            self._files.close()
            self._start(begin(self.path, self._meta, self._rules))
        elif step < self._last:
            self._mark(Mark(RESUMED, step))

    def _mark_resumed(self, step: int | None, again: bool) -> None:
        """What the resumed run does again counts no more; what nobody has written is said."""
        last = self._last
        if step is None or last is None:
            return
        if last < step and not again:
            self._mark(
                Mark(
                    DROPPED,
                    last,
                    step - last,
                    "the process ended before the last steps were written",
                )
            )
        self._mark(Mark(RESUMED, step + 1))
        self._last = step

    def _write_tokens(
        self,
        step: int,
        tokens: Sequence[ExtremeToken],
        phase: str,
        around: Sequence[Row],
        places: Mapping[str, Places],
    ) -> None:
        make = partial(encode_tokens, step, tokens, phase, around, places)
        self._write("tokens", self._encoded(make))

    def _write_alert(self, alert: Alert) -> None:
        self._write("alerts", self._encoded(lambda: encode_row(alert_to_row(alert))))

    def _write_notice(self, notice: Notice) -> None:
        self._write("notes", self._encoded(lambda: encode_row(notice_to_row(notice))))

    def _encoded(self, make: Callable[[], bytes]) -> bytes:
        """A row as a line; one that cannot be is lost, which the next row says."""
        try:
            return make()
        except BaseException:
            self._losses.lose("it could not be made into JSON", self._last)
            raise

    def _mark(self, mark: Mark) -> None:
        self._write("marks", mark)

    def _write(self, kind: str, line: bytes | Mark) -> bool:
        """One row, and then a mark that says what was lost before it."""
        try:
            if not self._lock.is_ours(self):
                self._move("another run of this process writes there")
            try:
                self._files.append(kind, line)
            except LostFilesError as error:
                self._move(error.why, error.rows, error.whole)
                self._files.append(kind, line)
        except OSError as error:
            self._losses.fail(error, self.path / FILES[kind], self._last)
            return False
        self._unsynced = True
        self._say_lost()
        return True

    def _say_lost(self) -> None:
        self._losses.tell(partial(self._files.append, "marks"), self._worker.dropped, self._last)

    def _move(self, why: str, rows: int = 0, whole: bool = True) -> None:
        """The files are gone, or somebody else's: go on in a directory that is ours."""
        self._files.close()
        if whole:
            wanted = self.path
            self._lock.release(self)
            self.path, self._lock = claim(wanted, self, take_over=False)
            self._files = self._files.moved(self.path)
            self._start(begin(self.path, self._meta, self._rules))
            say("%s: %s; the record goes on in %s", wanted, why, self.path)
        else:
            say("%s: %s; it is made again", self.path, why)
        if rows:
            self._files.append("marks", Mark(DROPPED, self._last, rows, why))

    def _sync_if_due(self) -> None:
        if self._unsynced and time.monotonic() - self._synced_at >= SYNC_SECONDS:
            self._sync()
            self._lock.beat()

    def _sync(self) -> None:
        self._synced_at = time.monotonic()
        last = self._files.last
        try:
            self._files.sync()
        except OSError as error:
            self._losses.errors += 1
            if self._losses.errors == 1:
                say("cannot have %s survive a loss of power: %s", self.path, error.strerror)
        else:
            self._synced, self._unsynced = last, False

    def _close_files(self) -> None:
        if self._files.used:
            self._say_lost()
            self._sync()
        self._files.close()
