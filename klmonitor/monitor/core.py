"""Monitor: log-probs in, a report out once per optimizer step.

    monitor = Monitor(run_dir="runs/math", sinks=["tensorboard"])
    monitor.observe(policy=lp, ref=ref_lp, mask=mask)      # as often as there are micro-batches
    report = monitor.step(17)                              # once per optimizer step, on every rank

The failure contract: the constructor and the first `observe` are setup and raise on bad input.
After that nothing raises into training (unless ``strict=True``): every entry goes through a
`Boundary`. `observe` rests after repeated failures; `step` never skips the collectives that other
ranks wait for.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from klmonitor.boundary import Boundary, cause, say
from klmonitor.monitor.beside import surroundings
from klmonitor.monitor.configuration import monitor_settings
from klmonitor.monitor.exchange import Exchange, Pending
from klmonitor.monitor.flags import Flags
from klmonitor.monitor.judge import Judge
from klmonitor.monitor.loop import LoopWatch, check_world
from klmonitor.monitor.stepnumbers import StepNumbers
from klmonitor.monitor.steps import Steps
from klmonitor.notify import Notify
from klmonitor.numbers.assemble import ExtraValues
from klmonitor.numbers.explain import judged
from klmonitor.numbers.neighbours import NOTHING
from klmonitor.numbers.receipt import by_pair
from klmonitor.numbers.stored import check_plain, count_of
from klmonitor.penalty import Penalty
from klmonitor.record import Achieved, RecordWriter
from klmonitor.record.around import AROUND, Words
from klmonitor.record.notices import Notice
from klmonitor.report import Health, Report
from klmonitor.rules import RuleSet, settings_to_row
from klmonitor.rules.file import load_rules
from klmonitor.sinks import Metrics, Sink
from klmonitor.sinks.delivery import Delivery
from klmonitor.sinks.table import EVENTS_SHARE, MAX_DISK, SinkOptions, make_sinks
from klmonitor.sinks.tokentable import Annotate
from klmonitor.summary.logged import LoggedSteps
from klmonitor.summary.observer import Observer
from klmonitor.summary.parts import unpack
from klmonitor.summary.reduce import (
    Ranks,
    default_ranks,
    rank_of,
    world_of,
)
from klmonitor.summary.state import Summary

logger = logging.getLogger("klmonitor")

LEAST_DISK = 10**5
"""Bytes: some dozens of rows."""


class Monitor(Observer):
    """Watches the KL of one training run; `observe` is the `Observer`'s.

    Attributes:
        offer: a number of an adapter's own that travels with each step's flags; agreed: the largest
            of all ranks' at the last step.
        penalties: pair -> the KL term that the objective has on it.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str] | None = None,
        *,
        metrics: Metrics = "core",
        rules: Any = "default",
        sinks: Collection[str | Sink | Callable[[Report], None]] = (),
        notify: Notify = None,
        groups: Collection[str] = (),
        pairs: Collection[str] | None = None,
        prompts: bool = True,
        log_tokens: str | bool = "local",
        max_disk: int = MAX_DISK,
        half_life: float = 100.0,
        process_group: Ranks | Literal[False] | None = None,
        strict: bool = False,
        merge_rows: bool = False,
        meta: Mapping[str, Any] | None = None,
        extra_values: ExtraValues | None = None,
        annotate: Annotate | None = None,
        penalty: Penalty | Mapping[str, Penalty] | None = None,
        clip_range: Sequence[float] | None = None,
        notes: Mapping[str, str] | None = None,
        words: Words | None = None,
    ) -> None:
        """Set up; nothing is collective yet.

        Args:
            run_dir: directory of the run's record; None keeps nothing on disk.
            metrics: what sinks send to trackers: ``"core"``, ``"full"`` or globs of metric names.
            rules: alert rules: a preset's name, a table of changes (`klmonitor.rules`), or a
                ``.toml`` or ``.json`` file of one.
            sinks: names of the table in `klmonitor.sinks.table`, sinks, or plain functions of a
                report.
            notify: who is told of alerts: ``"env:NAME"``, ``"file:/path"`` (`klmonitor.notify`).
            groups: names of data sets or environments to report apart; others are ``other``.
            pairs: names of the pairs to watch; None: those that the observed policies allow.
            prompts: keep sums by prompt, for standard errors when `prompt_ids` are given.
            log_tokens: ``"local"`` keeps extreme tokens in the record, False keeps none.
            max_disk: bytes that the run may take on disk; then old steps are thinned, alerts and
                notes are not (docs/record.md).
            half_life: of the running means and variances, steps.
            process_group: whose ranks are reduced over; None: the default group, if there is one;
                False: nobody's (a driver whose workers send parts).
            strict: raise instead of counting failures.
            merge_rows: keep what `take_logged` needs.
            meta: written into the record's ``run.json``.
            extra_values: an adapter's own numbers of a pair, from its name, its other values and
                its histogram, [HISTOGRAM] counts of d.
            annotate: gives extreme tokens, seen in a phase, their text for the record.
            penalty: the KL term of the objective, of ``policy_ref`` if no pair is named; its
                receipt is in ``penalty/*`` (docs/penalty.md).
            clip_range: bounds of the ratio policy / old that the objective clips to, (low, high),
                such as (0.8, 1.28); a third is the most where the advantage is negative.
            notes: pair -> what to know before its numbers are read, for `explain` and the record.
            words: the text of each of some token ids, for the record of what stood around the
                extreme tokens of a step with an alert.

        Raises:
            ValueError: a setting cannot work; the message names it and the remedy.
            OSError: the run directory cannot be made.
        """
        if log_tokens not in ("local", True, False):
            raise ValueError(f"log_tokens is {log_tokens!r}: choose 'local', True or False")
        if not max_disk >= LEAST_DISK:
            raise ValueError(f"max_disk = {max_disk!r}: give bytes, {LEAST_DISK} or more")
        super().__init__(groups, pairs, prompts, strict)
        self._judge = Judge(RuleSet(load_rules(rules), self.log), self.log, strict)
        self._group = process_group
        self.penalties = self._intake.penalties = by_pair(penalty)
        self._numbers = StepNumbers(half_life, extra_values, clip_range, self.penalties, notes)
        self.offer = self.agreed = -math.inf
        self._health_of: dict[str, Health] = {}
        self._pending: Pending | None = None
        self._rows = LoggedSteps() if merge_rows else None
        self._closed = self._told_closed = False
        self._always = {
            name: Boundary(name, self.log, patience=None, strict=strict)
            for name in (
                "step",
                "report",
                "rows",
                "notes",
                "close",
                "a worker's part",
                AROUND,
            )
        }
        self._steps = Steps(self._always["step"])
        self._exchange = Exchange(self._intake, self._ranks, self._always["step"], self.log)
        self._made_for = self._world()
        self._delivery = Delivery(self.log)
        if self._enabled and rank_of(self._ranks()) == 0:
            record = None
            if run_dir is not None:
                declared = {"groups": list(self._intake.config.groups)}
                record = RecordWriter(
                    Path(run_dir),
                    {**declared, **self._numbers.settings(), **(meta or {})},
                    max_bytes=int((1 - EVENTS_SHARE) * max_disk),
                    rules=settings_to_row(self._judge.rules.settings),
                    log=self.log,
                )
            self._delivery = Delivery(
                self.log,
                record,
                make_sinks(
                    sinks,
                    SinkOptions(
                        None if record is None else record.path,
                        metrics,
                        tokens=log_tokens is not False,
                        max_disk=max_disk,
                        annotate=annotate if log_tokens is True else None,
                    ),
                    notify,
                    self.log,
                ),
                annotate=annotate,
                keep_tokens=log_tokens is not False,
                words=words,
                strict=strict,
            )

    @classmethod
    def from_config(cls, path: str | os.PathLike[str] | None = None, **overrides: Any) -> Monitor:
        """A monitor set up by a file and the environment: its keys are the arguments above.

        Args:
            path: a TOML file with a table ``[klmonitor]``; None: the one that ``KLMONITOR_CONFIG``
                names, if any.
            overrides: go before ``KLMONITOR_<OPTION>`` of the environment, and that before the
                file.

        Raises:
            ValueError: a key is unknown (the message has the nearest), or cannot work.
            OSError: the run directory cannot be made.
        """
        return cls(**monitor_settings(cls, path, overrides))

    @property
    def errors(self) -> int:
        """Failures that were caught so far, in this process."""
        return self.log.read().errors

    # --- in ----------------------------------------------------------------------------------
    def _place(self) -> tuple[int, int]:
        ranks = self._ranks()
        return (0, 1) if ranks is None else (rank_of(ranks), world_of(ranks))

    def _world(self) -> int:
        return world_of(self._ranks())

    def _open(self) -> bool:
        if self._closed:
            self._after_close()
        if self._closed or self._exchange.off:
            self._coming.clear()
            return False
        return True

    def add_part(self, part: bytes) -> None:
        """Add what a worker's `Collector.take` gave, before `step` on the driver.

        Never raises: what is no part, or one of other settings, is counted and named once.
        """
        if self._enabled:
            self._always["a worker's part"](self._add_part, part)

    def add_audit(self, pair: str, sums: Tensor) -> None:
        """Add what logits told of a pair (`klmonitor.summary.audited`) to the present step."""
        self._intake.add_audit(pair, sums)

    def _add_part(self, data: bytes) -> None:
        part = unpack(data, self._intake.config)
        workers = self._numbers.workers
        if part.worker not in workers:
            workers.append(part.worker)
        self._health_of[part.worker] = part.health
        rank = -1 - workers.index(part.worker)  # not one of ours
        self._intake.merge(part, rank)

    # --- out ---------------------------------------------------------------------------------
    def step(
        self,
        step: int,
        *,
        phase: str = "train",
        wait: bool = True,
        run: Mapping[str, Any] | None = None,
    ) -> Report:
        """Close a step: reduce over the ranks, judge, record. Collective: call on every rank.

        Args:
            step: the trainer's step, for records and alerts: whole, and no smaller than the last.
            phase: which observations to close.
            wait: False: reduce, and return the previous step's report; this one is judged with the
                next.
            run: what is known of the run, ``{"learning_rate": 1e-6, "beta": 0.04}``; names and
                meanings are the table of `klmonitor.numbers.runvalues`. Of ranks that give
                different numbers the largest counts.

        Returns:
            The report, the same on every rank; empty where nothing was observed, monitoring is off
            or something failed. Its step is None where there is no result yet (``wait=False``).

        Raises:
            TypeError: at the first call: `step` is no whole number, or a value of the run none.
            ValueError: at the first call: a value of the run has an unknown name.
        """
        known, number = self._steps.known(run), self._steps.number(step)
        if self._closed:
            self._after_close()
        if (not self._enabled and not self._ranks()) or self._closed or self._exchange.off:
            return self._nothing(number, phase)
        pending = self._exchange.start(number, phase, partial(self._flags, known))
        earlier, self._pending = self._pending, None if wait else pending
        found = None if earlier is None else self._finish(earlier)
        if wait:
            found = None if pending is None else self._finish(pending)
        return found or self._nothing(number if wait else None, phase)

    def _flags(self, run: Mapping[str, float]) -> tuple[Flags, str]:
        """What travels with a step's sums, all of them, and why numbers are missing here."""
        self._land(wait=True)  # here a failure keeps nobody from the collectives
        health = self._health()
        return Flags.of(health, self.offer, self._delivery.mutes, run), health.why

    def _nothing(self, step: int | None, phase: str) -> Report:
        """The report of a step of which nothing is known."""
        health = self._health()
        return Report(
            step=step,  # type: ignore[arg-type]  # None: before the first result
            first_step=step or 0,
            phase=phase,
            pairs={},
            run_values=health.values,
            health=health,
        )

    def _after_close(self) -> None:
        if not self._told_closed:
            self._told_closed = True
            say("this monitor is closed: what is observed and stepped from now on is left out")

    def _health(self) -> Health:
        """Of this process and of the workers whose parts came here."""
        mine = self._delivery.health()
        if self._enabled and not self._health_of:
            return mine
        found = [mine, *self._health_of.values()]
        why = [mine.why, *(f"{name}: {one.why}" for name, one in self._health_of.items())]
        return Health(
            sum(one.errors for one in found),
            sum(one.dropped for one in found),
            self._enabled and all(one.active for one in found),
            "; ".join(text for text, one in zip(why, found, strict=True) if not one.active),
        )

    def _finish(self, pending: Pending) -> Report | None:
        return self._always["report"](self._report, pending)

    def _report(self, pending: Pending) -> Report:
        summary, flags, absent = pending.summary, pending.flags, pending.absent
        self.agreed = flags.offer
        train = pending.phase == "train"
        why = pending.why or ("a rank sent no summary of this step" if absent else "")
        health = Health(flags.errors, flags.dropped, flags.active and not absent, why)
        pairs = self._numbers.of(summary, pending.phase, advance=train)
        report = Report(
            step=pending.step,
            first_step=pending.step,
            phase=pending.phase,
            time=time.time(),
            pairs=pairs,
            run_values={**health.values, **flags.run},
            health=health,
        )
        beside, summary.around = summary.around, None  # nothing is held beyond its step
        if not train:
            report = report.changed(pairs={name: judged(one) for name, one in pairs.items()})
            self._delivery.send(report)
            return report
        report, ended = self._judge.of(report, flags.mutes)
        if self._rows is not None:
            self._rows.keep(summary, report.told)
        around = NOTHING
        if self._delivery.keeps_tokens:
            around = self._always[AROUND](surroundings, report, beside) or NOTHING
        self._delivery.send(report, ended, around)
        for notice in self._judge.notices(report):
            self._delivery.note(notice)
        return report

    def watch(
        self,
        optimizer: Any = None,
        *,
        start: int | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> LoopWatch:
        """Watch a plain loop: steps are counted, the monitor is closed at its end, error or not.

        Args:
            optimizer: a `torch.optim.Optimizer`, or accelerate's wrapper of one: each of its steps
                closes one here; None: call `step()` of what is returned once per optimizer step.
            start: number of the first step; None: the one after the last, 1 in a new run.
            state: what `state_dict` gave at the checkpoint that the loop goes on from; None: none.

        Returns:
            For ``with``, or to be closed by its `close()`; give it the micro-batches.

        Raises:
            TypeError: `optimizer` is none whose steps can be seen, or `start` no whole number.
            ValueError: the state is damaged, or processes have joined since this was made.
        """
        check_world(self._made_for, self._world(), self._group is False)
        if state is not None:
            self.load_state_dict(state)
        return LoopWatch(self, optimizer, (self._steps.last or 0) + 1 if start is None else start)

    def note(self, text: str) -> None:
        """Put a dated notice on the run's time line, beside its alerts; needs a run directory."""
        self._always["notes"](self._note, text)

    def _note(self, text: str) -> None:
        self._delivery.note(Notice(self._steps.last or 0, str(text), time=time.time()))

    def take_logged(self) -> Report | None:
        """One report over all training steps since the last call, as if they were one step.

        Needs ``merge_rows=True``; None where no step was closed since.
        """
        return None if self._rows is None else self._always["rows"](self._rows.take, self._merged)

    def _merged(self, summary: Summary, last: Report) -> Report:
        pairs = {
            name: judged(pair, last.pairs[name].open_kinds if name in last.pairs else ())
            for name, pair in self._numbers.of(summary, last.phase, advance=False).items()
        }
        return last.changed(pairs=pairs, alerts=())

    def describe(self, pairs: Iterable[str] = ()) -> str:
        """From when the rules judge each pair, a line each; of `pairs` also before a first step.

        A pair has its baseline in its own time: a step counts that had its tokens.
        """
        found = self._judge.rules.standing(pairs)
        return "\n".join(f"{name}: {standing}" for name, standing in found.items())

    # --- life cycle --------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Running numbers, baselines and episodes, as JSON-able data; what is queued is written."""
        self._always["close"](self._delivery.checkpoint)
        self.flush(0.0)  # a checkpoint that survives should find its steps in the record
        return {
            "version": 1,
            "run_id": self._delivery.run_id,
            "running": self._numbers.running.state_dict(),
            **self._judge.state_dict(),
            "step": self._steps.last,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken: all of it, or nothing where it cannot be right.

        Raises:
            ValueError: the state is of another version, or damaged; nothing is changed.
        """
        if not isinstance(state, Mapping) or state.get("version") != 1:
            version = state.get("version") if isinstance(state, Mapping) else None
            raise ValueError(f"state has version {version!r}, this is 1: start with a new Monitor")
        running, step, run_id = (
            self._numbers.running.fresh(),
            state.get("step"),
            state.get("run_id", ""),
        )
        try:
            check_plain(dict(state))
            running.load_state_dict(state["running"])
            judge = self._judge.resumed(state, step)
            last = None if step is None else count_of(step, "the step of the state")
            if not isinstance(run_id, str):
                raise TypeError("run_id is no text")
        except (TypeError, KeyError, AttributeError, IndexError, OverflowError) as error:
            raise ValueError(
                f"the state is damaged ({cause(error)}): start with a new Monitor"
            ) from error
        self._numbers.running, self._judge, self._steps.last = running, judge, last
        self._always["close"](self._delivery.resumed, last, run_id)

    def flush(self, timeout: float = 5.0) -> Achieved:
        """Wait until the record is written, at most `timeout` seconds; never raises.

        Returns:
            What was achieved; true where nothing waits any more.
        """
        found = self._always["close"](self._delivery.flush, timeout)
        return Achieved(done=False) if found is None else found

    @property
    def run_dir(self) -> Path | None:
        """Where the record is: what was asked for, or beside it where others write there."""
        return self._delivery.run_dir

    def record_status(self) -> list[str]:
        """Where the record is and what was lost so far, a line an item."""
        return self._delivery.described(self._health())

    def conclusion(self) -> str:
        """What came of it in a line: steps, alerts, what failed, and where to look."""
        return self._delivery.conclusion(self._steps.last, self._health())

    def close(self) -> Achieved:
        """Deliver the last report, write what is queued (at most 5 s), close the sinks.

        Returns:
            What was achieved; true where all of it was.
        """
        if self._closed:
            return self.flush(0.0)
        self._closed = True
        self._coming.clear()  # of a step that nobody closes
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._finish(pending)
        found = self._always["close"](self._delivery.close)
        with suppress(Exception):  # a handler of the log's may do anything
            logger.info("klmonitor: %s", self.conclusion())
        return Achieved(done=False) if found is None else found

    def _ranks(self) -> Ranks | None:
        if self._group is False:
            return None
        return default_ranks() if self._group is None else self._group
