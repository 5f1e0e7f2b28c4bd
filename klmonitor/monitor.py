"""Monitor: log-probs in, a report out once per optimizer step.

    monitor = Monitor(run_dir="runs/math", sinks=["tensorboard"])
    monitor.observe(policy=lp, ref=ref_lp, mask=mask)      # as often as there are micro-batches
    report = monitor.step(17)                              # once per optimizer step, on every rank

The failure contract: the constructor and the first `observe` are setup and raise on bad input.
After that nothing raises into training (unless ``strict=True``): every entry has one boundary that
catches, counts in `errors` and warns once. `observe` gives up after repeated failures; `step` never
skips the collectives that other ranks wait for.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from klmonitor.compiled import Compiled
from klmonitor.notify import Notify
from klmonitor.numbers.assemble import ExtraValues, pair_report, pair_totals
from klmonitor.numbers.running import Running
from klmonitor.numbers.statistics import N_RUNNING
from klmonitor.pairs import Pair, default_pairs, parse_pairs
from klmonitor.record import RecordWriter
from klmonitor.report import Report
from klmonitor.rules import RuleSet, settings_to_row
from klmonitor.rules.file import load_rules
from klmonitor.sinks import Metrics, Sink
from klmonitor.sinks.delivery import Outputs, make_sinks
from klmonitor.sinks.tokentable import Annotate
from klmonitor.summary.batch import TensorLike, TokenBatch, build, moved
from klmonitor.summary.extremes import Place
from klmonitor.summary.fields import SEQUENCE_FIELDS, TOKEN_FIELDS, SummaryConfig
from klmonitor.summary.logged import LoggedSteps
from klmonitor.summary.passes import accumulate
from klmonitor.summary.reduce import Group, HostCopy, agree, default_group, rank_of, reduce_over
from klmonitor.summary.state import Summary

logger = logging.getLogger("klmonitor")
T = TypeVar("T")

PATIENCE = 5
"""Failures in a row after which `observe` gives up."""
PHASES = ("train", "eval")


@dataclass(frozen=True)
class Pending:
    """A step whose numbers are on their way to the host."""

    step: int
    phase: str
    copy: HostCopy


class Monitor:
    """Watches the KL of one training run.

    Attributes:
        errors: failures that were caught so far, on this rank.
        active: False once `observe` has given up, or where KLMONITOR_DISABLE is set.
        impaired: an adapter sets it where one of its hooks was given up; any rank's makes
            ``klmonitor/active`` 0 on all.
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
        process_group: Group | None = None,
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
            sinks: ``"tensorboard"``, ``"wandb"``, ``"prometheus"``, sinks, or plain functions of a
                report.
            notify: who is told of alerts: ``"env:NAME"``, ``"file:/path"`` (`klmonitor.notify`).
            groups: names of data sets or environments to report apart; others are ``other``.
            pairs: names of the pairs to watch; None: those that the observed policies allow.
            prompts: keep sums by prompt, for standard errors when `prompt_ids` are given.
            log_tokens: ``"local"`` keeps extreme tokens in the record, False keeps none.
            half_life: of the running means and variances, steps.
            process_group: whose ranks are reduced over; None: the default group, if there is one.
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
        names = tuple(groups)
        if len(set(names)) < len(names) or "other" in names:
            raise ValueError(f"groups {names}: give distinct names, 'other' is taken")
        self.errors = 0
        self._enabled = os.environ.get("KLMONITOR_DISABLE", "0") in ("", "0")
        self.active = self._enabled
        if self._enabled:
            Compiled.prepare()
        self.impaired = False
        self._config = SummaryConfig(groups=names) if prompts else SummaryConfig(names, 0)
        self._pairs = None if pairs is None else parse_pairs(pairs)
        self._rules = RuleSet(load_rules(rules))
        self._running = Running(half_life)
        self._group = process_group
        self._strict = strict
        self._extra_values = extra_values
        self._states: dict[str, Summary] = {}
        self._micro_batches = dict.fromkeys(PHASES, 0)
        self._centres: dict[str, float] = {}
        self._pending: Pending | None = None
        self._spare: Summary | None = None
        self._rows = LoggedSteps(self._recycle) if merge_rows else None
        self._observed = self._agreed = self._closed = False
        self._failures = 0
        self._warned: set[str] = set()
        self._outputs = Outputs()
        if self.active and rank_of(process_group or default_group()) == 0:
            record = None
            if run_dir is not None:
                record = RecordWriter(
                    Path(run_dir),
                    {"groups": list(names), **(meta or {})},
                    rules=settings_to_row(self._rules.settings),
                )
            self._outputs = Outputs(
                record,
                make_sinks(
                    sinks,
                    run_dir,
                    metrics,
                    notify,
                    tokens=log_tokens is not False,
                    annotate=annotate if log_tokens is True else None,
                ),
                annotate=annotate,
                keep_tokens=log_tokens is not False,
                failed=self._caught,
            )

    # --- in ----------------------------------------------------------------------------------
    def observe(
        self,
        *,
        mask: TensorLike | None = None,
        token_ids: TensorLike | None = None,
        prompt_ids: TensorLike | None = None,
        cu_seqlens: TensorLike | None = None,
        sequence_ids: TensorLike | None = None,
        group: str | Sequence[str] | Tensor | None = None,
        phase: str = "train",
        **log_probs: TensorLike | None,
    ) -> None:
        """Add one micro-batch; never synchronises with the device.

        Args:
            log_probs: ``policy=``, ``old=``, ``rollout=``, ``ref=``: log-probs of the sampled
                tokens, nats, at least two of them, in a layout of `klmonitor.summary.batch.build`.
            mask: which tokens count, same layout.
            token_ids: vocabulary ids, same layout; to name the extreme tokens.
            prompt_ids: [B] integers: completions of one prompt are not independent.
            cu_seqlens: [B + 1] offsets, for packed tokens.
            sequence_ids: [N] integers, for packed tokens.
            group: the micro-batch's group, or one name a sequence, or int64 [B] indices into the
                declared groups (any other index: ``other``).
            phase: ``"train"`` or ``"eval"``; the two are never mixed.

        Raises:
            ValueError: at the first call: shapes, masks or layouts do not fit.
            TypeError: at the first call: a dtype or a policy's name is wrong.
        """
        if not self.active:
            return
        layout = {
            "mask": mask,
            "token_ids": token_ids,
            "prompt_ids": prompt_ids,
            "cu_seqlens": cu_seqlens,
            "sequence_ids": sequence_ids,
        }
        if not self._observed:
            self._add(log_probs, layout, group, phase)
            self._observed = True
            return
        try:
            self._add(log_probs, layout, group, phase)
            self._failures = 0
        except Exception as error:  # noqa: BLE001  # the boundary between us and training
            self._failures += 1
            if self._failures >= PATIENCE:
                self.active = False
            self._caught("observe", error)

    def _add(
        self,
        log_probs: Mapping[str, TensorLike | None],
        layout: Mapping[str, TensorLike | None],
        group: str | Sequence[str] | Tensor | None,
        phase: str,
    ) -> None:
        if phase not in PHASES:
            raise ValueError(f"phase is {phase!r}: choose 'train' or 'eval'")
        batch = build(log_probs, check_values=not self._observed, **layout)
        pairs = self._pairs_of(batch)
        state = self._states.get(phase)
        if state is None or state.device != batch.device:
            state = self._states[phase] = self._empty(batch.device, state)
        accumulate(
            state,
            batch,
            pairs,
            place=Place(rank_of(self._ranks()), self._micro_batches[phase]),
            groups=self._group_rows(group, batch),
            centres=self._centres,
        )
        self._micro_batches[phase] += 1

    def _empty(self, device: torch.device, moved: Summary | None) -> Summary:
        """A summary on a device, of no tokens or of those of another device's."""
        spare, self._spare = self._spare, None
        if spare is not None and moved is None and device.type == "cpu":
            spare.clear()
            return spare
        with torch.inference_mode(False):  # else it could not be added to outside that mode
            fresh = Summary.empty(self._config, device)
            return fresh if moved is None else fresh.merge(moved.to(device))

    def _recycle(self, summary: Summary) -> None:
        if summary.device.type == "cpu" and not summary.flat.is_inference():
            self._spare = summary

    def _pairs_of(self, batch: TokenBatch) -> tuple[Pair, ...]:
        held = batch.log_probs
        if self._pairs is None:
            pairs = default_pairs(held)
        else:
            pairs = tuple(pair for pair in self._pairs if pair.q in held and pair.p in held)
        if not pairs:
            wanted = "a pair" if self._pairs is None else ", ".join(p.name for p in self._pairs)
            raise ValueError(
                f"log-probs of {', '.join(held)} make none of {wanted}: pass policy and ref, "
                "old and policy, or rollout and old"
            )
        return pairs

    def _group_rows(
        self, group: str | Sequence[str] | Tensor | None, batch: TokenBatch
    ) -> int | Tensor:
        if group is None or isinstance(group, str):
            return self._config.group_index(group)
        if isinstance(group, np.ndarray):
            group = torch.from_numpy(group)
        if not isinstance(group, Tensor):
            group = torch.tensor(
                [
                    self._config.group_index(one) if isinstance(one, str) else int(one)
                    for one in group
                ],
                dtype=torch.int64,
            )
        if tuple(group.shape) != (batch.n_sequences,):
            raise ValueError(
                f"group has {group.numel()} entries but there are {batch.n_sequences} sequences: "
                "pass one a sequence, or one name for all"
            )
        other = len(self._config.groups)
        rows = moved(group.long(), batch.device)
        return torch.where((rows >= 0) & (rows < other), rows, other)

    def take_part(self, rank: int, phase: str = "train") -> Summary:
        """What was observed since the last step, for a driver that merges its workers' parts.

        Args:
            rank: the worker's number, part of the place of its extreme tokens.
            phase: which observations.

        Returns:
            A summary on the CPU, which travels by pickle; the next one starts from nothing.
        """
        part = self._take(phase).to("cpu")
        part.tokens[..., TOKEN_FIELDS.index("rank")] = rank
        part.sequences[..., SEQUENCE_FIELDS.index("rank")] = rank
        return part

    def add_part(self, part: Summary, phase: str = "train") -> None:
        """Add what a worker's `take_part` gave, before `step` on the driver.

        Raises:
            ValueError: the worker's monitor has other settings.
        """
        state = self._states.get(phase)
        with torch.inference_mode(False):
            if state is None:
                state = Summary.empty(self._config, part.device)
            self._states[phase] = state.merge(part.to(state.device))

    def _take(self, phase: str) -> Summary:
        self._micro_batches[phase] = 0
        state = self._states.pop(phase, None)
        if state is not None:
            return state
        with torch.inference_mode(False):
            return Summary.empty(self._config)

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
        try:
            pending = self._begin(step, phase)
        except Exception as error:  # noqa: BLE001  # the boundary between us and training
            self._caught("step", error)
            return None
        if wait:
            earlier, self._pending = self._pending, None
            if earlier is not None:
                self._finish(earlier)
            return self._finish(pending)
        earlier, self._pending = self._pending, pending
        return None if earlier is None else self._finish(earlier)

    def _begin(self, step: int, phase: str) -> Pending:
        ranks = self._ranks()
        state = self._take(phase)
        if not self._agreed:
            self._agreed = True
            agree(self._config, ranks)
        failures = self.errors + self._outputs.errors
        lost = float(self.impaired or not self.active)
        summary, flags = reduce_over(ranks, state, (float(failures), lost))
        return Pending(step, phase, HostCopy.start(summary, flags))

    def _finish(self, pending: Pending) -> Report | None:
        try:
            return self._report(pending)
        except Exception as error:  # noqa: BLE001  # the boundary between us and training
            self._caught("report", error)
            return None

    def _report(self, pending: Pending) -> Report:
        summary, flags = pending.copy.wait()
        train = pending.phase == "train"
        report = self._assemble(summary, pending.step, pending.phase, update=train)
        errors, disabled = flags
        run_values = {
            "klmonitor/active": 1.0 - disabled,
            "klmonitor/errors": errors,
        }
        if not train:
            report = replace(report, run_values=run_values)
            self._outputs.send(report)
            self._recycle(summary)
            return report
        judged = self._rules.judge(report)
        run_values["kl/alerts"] = float(len(judged.alerts))
        pairs = {
            name: pair.with_value("spike/z", judged.scores.get(name, math.nan))
            for name, pair in report.pairs.items()
        }
        report = replace(report, pairs=pairs, alerts=judged.alerts, run_values=run_values)
        for name, pair in pairs.items():
            mean = pair["k1/running_mean"]
            if not math.isnan(mean):
                self._centres[name] = mean
        if self._rows is None:
            self._recycle(summary)
        else:
            self._rows.keep(summary, report)
        self._outputs.send(report, judged.ended)
        return report

    def _assemble(self, summary: Summary, step: int, phase: str, *, update: bool) -> Report:
        pairs = {}
        for name, totals in pair_totals(summary).items():
            # Running numbers are training's.
            running = self._running.sums(name) if phase == "train" else np.zeros(N_RUNNING)
            decay = self._running.decay if update else math.nan
            pairs[name] = pair_report(name, totals, running, decay, self._extra_values)
        return Report(step=step, first_step=step, phase=phase, time=time.time(), pairs=pairs)

    def take_logged(self) -> Report | None:
        """One report over all training steps since the last call, as if they were one step.

        Needs ``merge_rows=True``; None where no step was closed since.
        """
        return self._guarded("rows", self._rows.take, self._merged) if self._rows else None

    def _merged(self, summary: Summary, last: Report) -> Report:
        return self._assemble(summary, last.step, last.phase, update=False)

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
        self._centres = self._running.mean_k1()

    def flush(self, timeout: float = 5.0) -> None:
        """Wait until the record is written, at most `timeout` seconds."""
        self._outputs.flush(timeout)

    def close(self) -> None:
        """Deliver the last report, write what is queued (at most 5 s), close the sinks."""
        if self._closed:
            return
        self._closed = True
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._finish(pending)
        self._outputs.close()

    # --- helpers -----------------------------------------------------------------------------
    def _ranks(self) -> Group | None:
        return self._group or default_group()

    def _guarded(self, hook: str, call: Callable[..., T], *args: Any) -> T | None:
        try:
            return call(*args)
        except Exception as error:  # noqa: BLE001  # the boundary between us and training
            self._caught(hook, error)
            return None

    def _caught(self, hook: str, error: Exception) -> None:
        """Count a failure, report its hook once; raise it only if the user asked for that."""
        self.errors += 1
        if self._strict:
            raise error
        if hook not in self._warned:
            self._warned.add(hook)
            with suppress(Exception):
                logger.warning(
                    "klmonitor: %s failed, training goes on without it (%s: %s); further "
                    "failures are counted in klmonitor/errors",
                    hook,
                    type(error).__name__,
                    error,
                )
