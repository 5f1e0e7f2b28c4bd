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

import math
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from klmonitor.boundary import Boundary, HealthLog
from klmonitor.notify import Notify
from klmonitor.numbers.assemble import ExtraValues, pair_reports
from klmonitor.numbers.causes import Causes
from klmonitor.numbers.explain import judged
from klmonitor.numbers.running import Running
from klmonitor.numbers.sums import StepSums
from klmonitor.record import RecordWriter
from klmonitor.report import Health, PairReport, Report
from klmonitor.rules import Judgement, RuleSet, settings_to_row
from klmonitor.rules.file import load_rules
from klmonitor.sinks import Metrics, Sink
from klmonitor.sinks.delivery import Delivery
from klmonitor.sinks.table import SinkOptions, make_sinks
from klmonitor.sinks.tokentable import Annotate
from klmonitor.summary.batch import TensorLike
from klmonitor.summary.extras import Version
from klmonitor.summary.intake import Group, Intake, Known, PromptIds
from klmonitor.summary.logged import LoggedSteps
from klmonitor.summary.parts import unpack
from klmonitor.summary.reduce import HostCopy, Ranks, agree, default_ranks, rank_of, reduce_over
from klmonitor.summary.state import Summary


@dataclass(frozen=True)
class Pending:
    """A step whose numbers are on their way to the host."""

    step: int
    phase: str
    copy: HostCopy
    why: str


class Monitor:
    """Watches the KL of one training run.

    Attributes:
        log: what failed or was lost so far, in this process; an adapter's boundaries count here.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str] | None = None,
        *,
        metrics: Metrics = "core",
        rules: Any = "default",
        sinks: Collection[str | Sink | Callable[[Report], None]] = (),
        notify: Notify = None,
        groups: Sequence[str] = (),
        pairs: Sequence[str] | None = None,
        prompts: bool = True,
        log_tokens: str | bool = "local",
        half_life: float = 100.0,
        process_group: Ranks | Literal[False] | None = None,
        strict: bool = False,
        merge_rows: bool = False,
        meta: Mapping[str, Any] | None = None,
        extra_values: ExtraValues | None = None,
        annotate: Annotate | None = None,
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
            half_life: of the running means and variances, steps.
            process_group: whose ranks are reduced over; None: the default group, if there is one;
                False: nobody's (a driver whose workers send parts).
            strict: raise instead of counting failures.
            merge_rows: keep what `take_logged` needs.
            meta: written into the record's ``run.json``.
            extra_values: an adapter's own numbers of a pair, from its name, its other values and
                its histogram, [HISTOGRAM] counts of d.
            annotate: gives extreme tokens, seen in a phase, their text for the record.

        Raises:
            ValueError: a setting cannot work; the message names it and the remedy.
            OSError: the run directory cannot be made.
        """
        if log_tokens not in ("local", True, False):
            raise ValueError(f"log_tokens is {log_tokens!r}: choose 'local', True or False")
        self.log = HealthLog()
        self._enabled = os.environ.get("KLMONITOR_DISABLE", "0") in ("", "0")
        self._intake = Intake(groups, pairs, prompts)
        self._rules = RuleSet(load_rules(rules), self.log)
        self._running = Running(half_life)
        self._causes = Causes()
        self._group = process_group
        self._extra_values = extra_values
        self._workers: list[str] = []
        self._health_of: dict[str, Health] = {}
        self._pending: Pending | None = None
        self._rows = LoggedSteps() if merge_rows else None
        self._observed = self._agreed = self._closed = False
        self._observe = Boundary("observe", self.log, vital=True, strict=strict)
        self._always = {
            name: Boundary(name, self.log, patience=None, strict=strict)
            for name in ("step", "report", "rules", "rows", "a worker's part")
        }
        self._delivery = Delivery(self.log)
        if self._enabled and rank_of(self._ranks()) == 0:
            record = None
            if run_dir is not None:
                record = RecordWriter(
                    Path(run_dir),
                    {"groups": list(groups), **(meta or {})},
                    rules=settings_to_row(self._rules.settings),
                )
            self._delivery = Delivery(
                self.log,
                record,
                make_sinks(
                    sinks,
                    SinkOptions(
                        run_dir,
                        metrics,
                        tokens=log_tokens is not False,
                        annotate=annotate if log_tokens is True else None,
                    ),
                    notify,
                    self.log,
                ),
                annotate=annotate,
                keep_tokens=log_tokens is not False,
                strict=strict,
            )

    @property
    def errors(self) -> int:
        """Failures that were caught so far, in this process."""
        return self.log.read().errors

    @property
    def active(self) -> bool:
        """Whether log-probs are taken: not where KLMONITOR_DISABLE is set or `observe` rests."""
        return self._enabled and not self._observe.resting

    # --- in ----------------------------------------------------------------------------------
    def observe(
        self,
        *,
        mask: TensorLike | None = None,
        token_ids: TensorLike | None = None,
        prompt_ids: PromptIds | None = None,
        cu_seqlens: TensorLike | None = None,
        sequence_ids: TensorLike | None = None,
        group: Group = None,
        phase: str = "train",
        entropy: TensorLike | None = None,
        version: Version = None,
        current_version: int | None = None,
        **log_probs: TensorLike | None,
    ) -> None:
        """Add one micro-batch; never synchronises with the device.

        Args:
            log_probs: ``policy=``, ``old=``, ``rollout=``, ``ref=``: log-probs of the sampled
                tokens, nats, at least two of them, in a layout of `klmonitor.summary.batch.build`.
            mask: which tokens count, same layout.
            token_ids: vocabulary ids, same layout; to name the extreme tokens.
            prompt_ids: [B] integers or strings: completions of one prompt are not independent.
            cu_seqlens: [B + 1] offsets, for packed tokens.
            sequence_ids: [N] integers, for packed tokens.
            group: the micro-batch's group, or one name a sequence, or int64 [B] indices into the
                declared groups (any other index: ``other``).
            phase: ``"train"`` or ``"eval"``; the two are never mixed.
            entropy: nats, of every token's position over the whole vocabulary, same layout: of
                `old` where it is given, else of `policy`, under the temperature of its log-probs.
            version: the number of weight updates in the weights that sampled, one integer or [B].
            current_version: the trainer's; None: the largest version seen.

        Raises:
            ValueError: at the first call: shapes, masks or layouts do not fit.
            TypeError: at the first call: a dtype or a policy's name is wrong.
        """
        if not self._enabled:
            return
        layout = {
            "mask": mask,
            "token_ids": token_ids,
            "cu_seqlens": cu_seqlens,
            "sequence_ids": sequence_ids,
        }
        known = Known(entropy, version, current_version)
        if self._observed:
            self._observe(self._add, log_probs, layout, prompt_ids, group, phase, known)
        else:  # setup
            self._add(log_probs, layout, prompt_ids, group, phase, known)
            self._observed = True

    def _add(
        self,
        log_probs: Mapping[str, TensorLike | None],
        layout: Mapping[str, TensorLike | None],
        prompt_ids: PromptIds | None,
        group: Group,
        phase: str,
        known: Known,
    ) -> None:
        rank = rank_of(self._ranks())
        self._intake.add(log_probs, layout, prompt_ids, group, phase, rank, known)

    def add_part(self, part: bytes) -> None:
        """Add what a worker's `Collector.take` gave, before `step` on the driver.

        Never raises: what is no part, or one of other settings, is counted and named once.
        """
        if self._enabled:
            self._always["a worker's part"](self._add_part, part)

    def _add_part(self, data: bytes) -> None:
        part = unpack(data, self._intake.config)
        if part.worker not in self._workers:
            self._workers.append(part.worker)
        self._health_of[part.worker] = part.health
        rank = -1 - self._workers.index(part.worker)  # not one of ours
        self._intake.merge(part, rank)

    # --- out ---------------------------------------------------------------------------------
    def step(self, step: int, *, phase: str = "train", wait: bool = True) -> Report | None:
        """Close a step: reduce over the ranks, judge, record. Collective: call on every rank.

        Args:
            step: the trainer's step, for records and alerts.
            phase: which observations to close.
            wait: False: start the copy to the host and return the previous step's report.

        Returns:
            The report (the same on every rank); None where there is none yet, or on failure.
        """
        if not self._enabled and not self._ranks():
            return None
        pending = self._always["step"](self._begin, step, phase)
        if pending is None:
            return None
        earlier, self._pending = self._pending, None if wait else pending
        report = None if earlier is None else self._finish(earlier)
        return self._finish(pending) if wait else report

    def _begin(self, step: int, phase: str) -> Pending:
        ranks = self._ranks()
        state = self._intake.take(phase)
        if not self._agreed:
            self._agreed = True
            agree(self._intake.config, ranks)
        health = self._health()
        mine = (float(health.errors), float(health.dropped), float(not health.active))
        summary, worst = reduce_over(ranks, state, mine)
        return Pending(step, phase, HostCopy.start(summary, worst), health.why)

    def _health(self) -> Health:
        """Of this process and of the workers whose parts came here."""
        mine = self._delivery.health()
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
        summary, (errors, dropped, inactive) = pending.copy.wait()
        train = pending.phase == "train"
        health = Health(int(errors), int(dropped), not inactive, pending.why)
        pairs = self._numbers(summary, pending.phase, advance=train)
        report = Report(
            step=pending.step,
            first_step=pending.step,
            phase=pending.phase,
            time=time.time(),
            pairs=pairs,
            run_values=health.values,
            health=health,
        )
        if not train:
            report = replace(report, pairs={name: judged(pair) for name, pair in pairs.items()})
            self._delivery.send(report)
            return report
        found = self._always["rules"](self._rules.judge, report)
        judgement = Judgement(errors=1) if found is None else found
        report = _with_judgement(report, judgement)
        if self._rows is not None:
            self._rows.keep(summary, report)
        self._delivery.send(report, judgement.ended)
        return report

    def _numbers(self, summary: Summary, phase: str, *, advance: bool) -> dict[str, PairReport]:
        step = StepSums(summary.arrays, summary.config.all_groups)
        if advance:
            self._running.advance(step)
        elif phase == "train":  # running numbers are training's
            self._running.read(step)
        found = pair_reports(step, self._extra_values, self._workers)
        return self._causes.name(step, found, advance=advance)

    def take_logged(self) -> Report | None:
        """One report over all training steps since the last call, as if they were one step.

        Needs ``merge_rows=True``; None where no step was closed since.
        """
        return None if self._rows is None else self._always["rows"](self._rows.take, self._merged)

    def _merged(self, summary: Summary, last: Report) -> Report:
        pairs = {
            name: judged(pair, last.pairs[name].open_kinds if name in last.pairs else ())
            for name, pair in self._numbers(summary, last.phase, advance=False).items()
        }
        return replace(last, pairs=pairs, alerts=())

    # --- life cycle --------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Running numbers, baselines and episodes, as JSON-able data; what is queued is written."""
        self.flush(0.0)  # a checkpoint that survives should find its steps in the record
        return {
            "version": 1,
            "running": self._running.state_dict(),
            "rules": self._rules.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: the state is of another version.
        """
        if state.get("version") != 1:
            raise ValueError(
                f"state has version {state.get('version')!r}, this is 1: start with a new Monitor"
            )
        self._running.load_state_dict(state["running"])
        self._rules.load_state_dict(state["rules"])

    def flush(self, timeout: float = 5.0) -> None:
        """Wait until the record is written, at most `timeout` seconds."""
        self._delivery.flush(timeout)

    def close(self) -> None:
        """Deliver the last report, write what is queued (at most 5 s), close the sinks."""
        if self._closed:
            return
        self._closed = True
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._finish(pending)
        self._delivery.close()

    def _ranks(self) -> Ranks | None:
        if self._group is False:
            return None
        return default_ranks() if self._group is None else self._group


def _with_judgement(report: Report, found: Judgement) -> Report:
    """A report with what the rules say of it, and each pair's verdict."""
    pairs = {
        name: judged(
            pair.with_value("spike/z", found.scores.get(name, math.nan)),
            found.open_kinds.get(name, ()),
        )
        for name, pair in report.pairs.items()
    }
    run_values = {**report.run_values, "kl/alerts": float(len(found.alerts))}
    if found.errors:
        run_values["klmonitor/rule_errors"] = float(found.errors)
    return replace(report, pairs=pairs, alerts=found.alerts, run_values=run_values)
