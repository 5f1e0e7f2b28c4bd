"""Numbers, alerts and media to Weights & Biases, in a run that somebody else may be logging to.

A run has one row open at a time, and its step only grows: a trainer that passes ``step=n`` loses
its own data, without an error, once anybody has pushed the run's step beyond n. So a report goes
into the open row and does not commit it. The step is moved, by one, only where the row that is
open already holds an earlier report of ours. This keeps the trainer's rows and ours

- whether the trainer passes steps or not, before us or after us, every step or every tenth;
- as long as a trainer that passes steps counts them no slower than reports come.

All of that is on a thread of our own, so a row may be late: somebody else has moved the step since
its report was made. A late row moves nothing; it goes into the row that is open if there is none
of ours in it, and else waits for the next one, or for the end. Where the newest report is not late,
the step is moved by one at most. When the run is finished, what waits is logged first.

Our x-axis is a metric of its own, ``klmonitor/step``, not the run's step.

Media are a histogram of d by pair and a table of the extreme tokens, at the first step, every
`MEDIA_EVERY` and at alerts; and, once, when the sink is closed or the interpreter exits, the page
of ``klmonitor report``, if nobody has finished the run before.
No prompt, and no token's text unless an `annotate` is given.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from klmonitor.background import flush_all
from klmonitor.boundary import say
from klmonitor.report import Alert, ExtremeToken, Report
from klmonitor.sinks.queued import CAPACITY, MediaSink
from klmonitor.sinks.selection import Metrics, select
from klmonitor.sinks.tokentable import Annotate
from klmonitor.sinks.wandbmedia import histograms, page, table, warm_up

RECORD_SECONDS = 0.5
"""What an exit waits for the rows that the page is made of."""
FINISH_SECONDS = 5.0
"""What ``wandb.finish()`` waits for rows that are on their way."""
LEVELS = {"info": "INFO", "warn": "WARN", "critical": "ERROR"}

logger = logging.getLogger("klmonitor")


class WandbSink(MediaSink):
    """Logs the chosen metrics, the alerts and, now and then, the media of each report.

    Make it after the trainer's own ``wandb.init``, in the process that logs (rank 0). A call
    returns at once.

    Args:
        run: the run to log to; None: ``wandb.run``, also the next one once that is finished, and if
            there is none, a run of our own. That one is offline if there is neither a key nor a
            mode: nothing ever asks for a key.
        metrics: ``"core"``, ``"full"`` or a list of globs.
        step_key: the metric that is the x-axis of ours; nobody else may log it.
        alert_seconds: an alert that repeats within this time is not sent again.
        run_dir: of the record whose page is logged at the end; None: no page.
        tokens: whether there is a table of extreme tokens.
        annotate: gives those tokens their text; None: the table has none.

    Raises:
        ImportError: wandb is not installed.
        ValueError: `metrics` is wrong.
    """

    name = "wandb"

    def __init__(
        self,
        run: Any = None,
        metrics: Metrics = "core",
        step_key: str = "klmonitor/step",
        alert_seconds: float = 300.0,
        run_dir: str | os.PathLike[str] | None = None,
        tokens: bool = True,
        annotate: Annotate | None = None,
    ) -> None:
        super().__init__("wandb", metrics, run_dir, tokens, annotate)
        self._owns_run = False
        self._follows = run is None
        if run is None:
            run, self._owns_run = _find_run()
        self.run = run
        self._step_key = step_key
        self._alert_seconds = alert_seconds
        self._defined: set[str] = set()
        self._row = -1  # the run's row that holds our last report, and that report's step
        self._row_step = -1
        self._moves = 0  # of the run's step, by us
        self._too_late = 0
        self._alerted: dict[str, float] = {}
        self._waiting: dict[int, tuple[dict[str, Any], int]] = {}  # by step: a row, when it was due
        self._may_move = False
        self._hooked: Any = None
        self._logged = run
        self._worker.submit(warm_up)

    @property
    def dropped(self) -> int:
        """Reports not tried, because wandb hung, or no run was active any more."""
        return super().dropped + self._too_late

    def __call__(self, report: Report) -> None:
        """Log a report."""
        if self._last is None:
            atexit.register(self._at_exit)  # before wandb's own, which finishes the run
        self._last = report.step
        if not self._follow():
            return
        media = self._media_due(report)
        if not (self._metrics or report.alerts or media):
            return
        due = self._moved_by_others()
        self._worker.submit(partial(self._log, report, due), now=True)
        if media:
            self._media_step = report.step
            found = self._table_of(report)
            self._worker.submit(partial(self._log_media, report, found, due), now=True)

    def _follow(self) -> bool:
        """Go on with the run that is active, where the last one is finished; False: none is."""
        if getattr(self.run, "_is_finished", False):
            active = getattr(sys.modules.get("wandb"), "run", None) if self._follows else None
            if active is None:
                self._too_late += 1
                if self._too_late == 1:
                    say("the wandb run is finished: what comes now is not in it, the record has it")
                return False
            self._worker.submit(partial(self._begin, active), now=True)
            self.run, self._owns_run, self._media_step = active, False, None
        if self._hooked is not self.run:
            self._hooked = self.run
            _before_finish(self.run, self._finish)
        return True

    def _finish(self) -> None:
        """Somebody finishes the run: log what waits, within `FINISH_SECONDS`."""
        self._worker.submit(partial(self._settle, True), now=True)
        self._worker.flush(FINISH_SECONDS)

    def _moved_by_others(self) -> int:
        """How far the run's step is from where it would be without us."""
        if self.run.settings.mode == "shared":
            return 0
        there = int(self.run.step)  # first: what we move meanwhile must not look like theirs
        return there - self._moves

    def close(self, timeout: float = 5.0) -> None:
        """Log what waits and the page, within `timeout` seconds; finish a run that we made."""
        if not self._closed and not getattr(self.run, "_is_finished", False):
            self._worker.submit(partial(self._settle, True))
        if not self._closed:
            self._worker.submit(self._log_page)
        if self._owns_run and not self._closed:
            self._worker.submit(self.run.finish)
        self._closed = True
        atexit.unregister(self._at_exit)
        self._worker.close(timeout)

    def _at_exit(self) -> None:
        flush_all(RECORD_SECONDS)
        self.close()

    # --- on the worker's thread ------------------------------------------------------------
    def _begin(self, run: Any) -> None:
        """Log to another run from now on."""
        self._logged = run
        self._defined, self._alerted = set(), {}
        self._row = self._row_step = -1
        self._moves = 0
        self._waiting.clear()

    def _log(self, report: Report, due: int) -> None:
        row = select(self._metrics, report)
        if row:
            self._define(row)
            self._may_move = True
            self._log_row({**row, self._step_key: report.step}, report.step, due)
        for alert in report.alerts:
            self._alert(alert)

    def _log_media(self, report: Report, tokens: Sequence[ExtremeToken], due: int) -> None:
        """Log histograms and the table of tokens beside the numbers of the same report."""
        media = histograms(report)
        try:
            media |= table(report.step, tokens, text=self._annotate is not None)
        finally:
            if media:
                self._define(media)
                self._log_row({**media, self._step_key: report.step}, report.step, due)

    def _log_page(self) -> None:
        """Log the run's page into the last row; say why, where there is none."""
        if self._last is None:
            return
        if getattr(self.run, "_is_finished", False):
            logger.info("klmonitor: no page in wandb: close the monitor before the run is finished")
            return
        if self._run_dir is None:
            logger.info("klmonitor: no page in wandb: the run keeps no record, give it a run_dir")
            return
        try:
            shown = page(self._run_dir)
        except (ValueError, OSError) as error:
            logger.warning("klmonitor: no page in wandb: %s", error)
            return
        self._define(shown)
        self._log_row({**shown, self._step_key: self._last}, self._last, self._moved_by_others())
        self._settle(True)

    def _log_row(self, row: dict[str, Any], step: int, due: int) -> None:
        """Log as soon as there is a row of the run for it.

        Args:
            row: what to log.
            step: of the report.
            due: `_moved_by_others` when the report was made.
        """
        if self._logged.settings.mode == "shared":  # rows of shared runs have no step
            self._logged.log(row)
            return
        before = self._waiting.pop(step, ({}, due))[0]
        self._waiting[step] = ({**before, **row}, due)
        if len(self._waiting) > CAPACITY:
            del self._waiting[next(iter(self._waiting))]
            self._too_late += 1
        self._settle(False)

    def _settle(self, at_the_end: bool) -> None:
        """Log what waits: into the open row, unless it holds another step of ours; else the next.

        Args:
            at_the_end: nobody else logs any more: move the step as often as is needed.
        """
        while self._waiting:
            step = next(iter(self._waiting))
            number = int(self._logged.step)
            move = number == self._row and step != self._row_step
            newest = next(reversed(self._waiting.values()))[1]
            if move and not at_the_end and (number - self._moves > newest or not self._may_move):
                return
            row, _ = self._waiting.pop(step)
            if move:
                self._may_move = False
                self._logged.log(row, step=number + 1)
                self._moves += 1  # now: what looks like others' move for a moment moves nothing
                if int(self._logged.step) > number + 1:  # somebody was quicker: it may be refused
                    self._logged.log(row, commit=False)
            else:
                self._logged.log(row, commit=False)
            # where somebody has moved it meanwhile, ours may be in either: take neither again
            self._row, self._row_step = int(self._logged.step), step

    def _define(self, row: Mapping[str, object]) -> None:
        """Put metrics over our x-axis, by exact name: an earlier glob would win over a later."""
        if not self._defined:
            self._logged.define_metric(self._step_key, hidden=True)
        for name in row.keys() - self._defined:
            self._logged.define_metric(name, step_metric=self._step_key)
            self._defined.add(name)

    def _alert(self, alert: Alert) -> None:
        """Send an alert; a run that is offline does not hold back repetitions, so we do."""
        title = f"{alert.severity} {alert.kind}: {alert.pair or 'run'}"[:63]
        now = time.monotonic()
        if now - self._alerted.get(title, -float("inf")) < self._alert_seconds:
            return
        self._alerted[title] = now
        level = LEVELS.get(alert.severity, "WARN")
        self._logged.alert(title, alert.text(), level=level, wait_duration=self._alert_seconds)


def _before_finish(run: Any, call: Callable[[], object]) -> None:
    """Have something called before a run is finished, where this wandb can."""
    with suppress(Exception):  # a private place of wandb's: without it the last rows may come late
        from wandb.sdk.wandb_run import TeardownHook, TeardownStage

        run._teardown_hooks.append(TeardownHook(call, TeardownStage.EARLY))


def _find_run() -> tuple[Any, bool]:
    """The run to log to, and whether it was made here."""
    try:
        import wandb
    except ImportError as error:
        raise ImportError('WandbSink needs wandb: pip install "klmonitor[wandb]"') from error
    if wandb.run is not None:
        return wandb.run, False
    settings = wandb.setup().settings
    undecided = "WANDB_MODE" not in os.environ and settings.mode == "online"
    offline = undecided and not has_key(settings)
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "klmonitor"), mode="offline" if offline else None
    )
    if offline:
        logger.warning(
            "klmonitor: wandb has no key, so the run stays offline; send it later with: "
            "wandb sync %s",
            Path(run.dir).parent,
        )
    return run, True


def has_key(settings: Any) -> bool:
    """Whether wandb can log in without asking anybody."""
    environment = (os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"))
    if settings.api_key or any(environment):
        return True
    try:
        host = urlsplit(settings.base_url).hostname or ""
        return netrc(os.environ.get("NETRC") or None).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False


def is_open() -> bool:
    """Whether somebody has opened a run that we would go on with; wandb is not imported for it."""
    return getattr(sys.modules.get("wandb"), "run", None) is not None
