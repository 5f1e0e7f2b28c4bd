"""One trainer being watched: what is bound, the step's end, the log row, and letting go."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any
from weakref import WeakSet

import torch
import torch.distributed as dist

from klmonitor.hooks.actions import CHECKPOINT, STOP, Actions
from klmonitor.hooks.feed import Capture, Feed, held_pairs
from klmonitor.hooks.handle import Handle
from klmonitor.hooks.options import Options, disabled
from klmonitor.hooks.text import TokenText
from klmonitor.hooks.wraps import Guard, Wrap
from klmonitor.monitor import Monitor
from klmonitor.numbers.buckets import Array
from klmonitor.report import ExtremeToken, Later, Report
from klmonitor.sinks import select
from klmonitor.summary.reduce import communication_device, default_group
from klmonitor_trl import describe
from klmonitor_trl.kinds import capture_for, kind_of, watched_pairs
from klmonitor_trl.objective import objective_of
from klmonitor_trl.reference import choose_reference
from klmonitor_trl.trackers import TokenTables, with_extras

CAPTURE = ("log-probs", "generation", "loss")
"""Hooks without which numbers are missing or wrong: one given up makes klmonitor/active 0."""

logger = logging.getLogger("klmonitor")
_watches: WeakSet[Watch] = WeakSet()


def watch_of(trainer: Any) -> Watch | None:
    """The active watch of a trainer, None if it is not watched."""
    return next((one for one in _watches if one.trainer is trainer and one.active), None)


class Watch:
    """Binds a trainer on construction; in a distributed run, on every rank.

    Attributes:
        trainer: the trainer.
        handle: what the user holds.
        report: the last optimizer step's report.
        active: whether anything is bound.
        on_detach: called when the trainer is let go.
    """

    def __init__(self, trainer: Any, options: Options) -> None:
        """Wrap the trainer's functions, unless KLMONITOR_DISABLE is set on any rank.

        Raises:
            TypeError: the trainer cannot be watched, or `reference` is of a wrong kind.
            ValueError: it is watched already, or an option cannot work with it.
        """
        kind = kind_of(trainer)
        if watch_of(trainer) is not None:
            raise ValueError(
                f"this {type(trainer).__name__} is watched already: use the handle that attach() "
                "returned, or call its detach() first"
            )
        self.trainer = trainer
        self.report: Report | None = None
        self.on_detach: Callable[[], None] = lambda: None
        self._options = options
        self._actions = Actions(options.on_alert, options.rules)
        self._wanted: set[str] = set()
        self._reference = choose_reference(trainer, kind, options, self._say)
        self.active = everywhere(not disabled())
        self._pairs = watched_pairs(trainer, kind)
        self._text = self._token_text()
        self._objective = objective_of(trainer, kind)
        directory = options.directory(trainer.args.output_dir) if self.active else None
        self._monitor = Monitor(
            run_dir=directory,
            metrics=options.metrics,
            rules=options.rules,
            groups=options.groups,
            pairs=self._pairs,
            log_tokens=options.log_tokens,
            strict=options.strict,
            sinks=(
                *with_extras(options.sinks, directory, tokens=options.log_tokens == "local"),
                *self._token_tables(),
            ),
            notify=options.notify,
            half_life=options.half_life,
            merge_rows=True,
            meta={"trainer": type(trainer).__name__, "trl": version("trl")},
            extra_values=self._objective_values,
            annotate=self._annotate if self._text else None,
        )
        self._guards = {
            # What fails on the record's thread cannot be raised into the trainer.
            name: Guard(name, self._count_error, options.strict and name != "text", self._given_up)
            for name in (*CAPTURE, "log", "step", "action", "text", "objective")
        }
        self.handle = Handle(self._monitor, self.detach, self.describe)
        self._wraps: list[Wrap] = []
        self._capture: Capture | None = None
        if self.active:
            feed = Feed(trainer, self._monitor, self._guards, self._text, pairs=self._pairs)
            self._capture = capture_for(trainer, kind, feed, options, self._reference)
            self._sources = self._capture.sources()
            wanted = {**self._capture.wraps(), "log": self._log}
            self._wraps = [Wrap(trainer, name, around) for name, around in wanted.items()]
            self._warn_of_absent()
            self._announce(directory)
        _watches.add(self)

    # --- steps -------------------------------------------------------------------------------
    def end_step(self, step: int, control: Any) -> None:
        """The optimizer has stepped; collective. `control` takes what alerts ask for."""
        if self._capture is not None and not self._capture.closes_in_log:
            self._finish_step(step)
        wanted, self._wanted = self._wanted, set()
        if CHECKPOINT in wanted:
            control.should_save = True
        if STOP in wanted:
            control.should_training_stop = True

    def _finish_step(self, step: int) -> None:
        self.report = self._guards["step"].always(self._monitor.step, step)
        if self.report is not None and self.report.alerts:
            wanted = self._actions(self.report.alerts, self._guards["action"].always)
            self._wanted |= wanted
            for action in sorted(wanted):
                self._say(f"on_alert: {action}, as step {step} asks for it")
        if self._text is not None:
            self._text.forget("train")

    def finish_evaluation(self, step: int) -> Report | None:
        """Close an evaluation; collective."""
        if self._reference is not None:
            self._reference.start_evaluation()
        report = self._guards["step"].always(self._monitor.step, step, phase="eval")
        if self._text is not None:
            self._text.forget("eval")
        return report

    def state(self) -> dict[str, Any]:
        """What a resumed run continues from."""
        return self._guards["step"].always(self._monitor.state_dict) or {}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a checkpoint."""
        self._guards["step"].always(self._monitor.load_state_dict, state)

    def detach(self) -> None:
        """Leave the trainer as it was, and close the monitor."""
        if not self.active:
            return
        self.active = False
        for wrap in reversed(self._wraps):
            wrap.undo()
        if self._capture is not None:
            self._capture.close()
        self.on_detach()
        self._monitor.close()

    # --- words -------------------------------------------------------------------------------
    def describe(self) -> str:
        """What was bound, what was not and why, and what has been seen."""
        if self._capture is None:
            return "klmonitor is off (KLMONITOR_DISABLE is set): nothing is bound"
        kind = type(self.trainer).__name__
        state = "watches" if self.active else "was detached from"
        lines = [f"klmonitor {state} {kind} (TRL {version('trl')})"]
        missing = self._capture.missing()
        for policy in ("policy", "old", "rollout", "ref"):
            seen = self._capture.feed.seen.get(policy, 0)
            if policy in self._sources:
                lines.append(f"  {policy:8}{self._sources[policy]} ({seen} micro-batches so far)")
            else:
                lines.append(f"  {policy:8}not held: {missing[policy]}")
        lines.append(
            f"  pairs   {', '.join(held_pairs(self._pairs, tuple(self._sources))) or 'none'}"
        )
        lines += [f"  absent: {name}: {what}" for name, what in self._capture.absent().items()]
        lines += [f"  given up: {name}" for name, guard in self._guards.items() if guard.closed]
        if self._reference is not None and self._reference.passes:
            mean = self._reference.seconds / self._reference.passes
            lines.append(f"  a reference pass takes {1e3 * mean:.0f} ms")
        return "\n".join(lines)

    def conclude(self) -> None:
        """One line at the end of training, if something of ours failed on the way."""
        if self._monitor.errors:
            self._say(f"{self._monitor.errors} errors of the monitor were caught; see describe()")

    def _announce(self, directory: Any) -> None:
        """One line: what is bound, where the record is, the next command."""
        pairs = held_pairs(self._pairs, tuple(self._sources))
        kind = type(self.trainer).__name__
        record = "no record" if directory is None else f"record in {directory}"
        look = "" if directory is None else f"; look: tail -F {directory}/alerts.jsonl"
        bound = ", ".join(self._sources)
        self._say(
            f"watching {kind} (TRL {version('trl')}): {bound}; "
            f"pairs {', '.join(pairs) or 'none'}; {record}{look}"
        )
        if not pairs and not self._monitor.impaired:
            self._say(
                f"{kind} holds no second distribution to compare the policy with (beta = 0, no "
                f"adapters). To get one, {describe.remedy(self.trainer)}"
            )

    def _warn_of_absent(self) -> None:
        """One warning that names the private functions which this TRL lacks."""
        assert self._capture is not None  # the only caller has made it
        absent = self._capture.absent()
        if not absent:
            return
        self._monitor.impaired = not held_pairs(self._pairs, tuple(self._sources))
        result = "; ".join(f"no {name}: {what}" for name, what in absent.items())
        off = ", so klmonitor is off" if self._monitor.impaired else ""
        logger.warning(
            "klmonitor: %s of TRL %s has %s%s", type(self.trainer).__name__, version("trl"), result,
            off,
        )  # fmt: skip

    def _say(self, line: str) -> None:
        """A line on the console of the main process."""
        if self.trainer.is_world_process_zero():
            sys.stderr.write(f"klmonitor: {line}\n")

    # --- the trainer's log -------------------------------------------------------------------
    def _log(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around the trainer's `log`: our numbers join the row before it is sent."""
        logs = kwargs["logs"] if "logs" in kwargs else (args[0] if args else None)
        if isinstance(logs, dict):
            prefix = evaluation_prefix(logs)
            step = self.trainer.state.global_step
            if prefix is not None:
                report = self.finish_evaluation(step)
                self._guards["log"].run(self._join_evaluation, logs, prefix, report)
            else:
                if self._capture is not None and self._capture.closes_in_log:
                    self._capture.in_log()
                    self._finish_step(step)
                self._guards["log"].run(self._join_row, logs)
        return original(*args, **kwargs)

    def _join_row(self, logs: dict[str, Any]) -> None:
        """The summary of the steps since the last row."""
        report = self._monitor.take_logged()
        if report is not None:
            logs.update(select(self._options.metrics, report))
            logs["klmonitor/active"] = report.run_values["klmonitor/active"]

    def _join_evaluation(self, logs: dict[str, Any], prefix: str, report: Report | None) -> None:
        """The evaluation's means and errors, under its own name."""
        if report is not None:
            values = select(self._options.metrics, report)
            logs.update({f"{prefix}_{name.removeprefix('eval/')}": x for name, x in values.items()})

    # --- helpers -----------------------------------------------------------------------------
    def _token_text(self) -> TokenText | None:
        """What decodes extreme tokens: on the process that writes the record, if it may."""
        trainer = self.trainer
        tokenizer = getattr(trainer, "processing_class", None)
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        wanted = self._options.log_tokens is not False and self.active
        if not wanted or not hasattr(tokenizer, "decode") or not trainer.is_world_process_zero():
            return None
        try:
            return TokenText(tokenizer, rank=0)
        except Exception as error:  # noqa: BLE001  # whatever a tokenizer does when it is copied
            self._say(f"tokens are recorded without text: no copy of the tokenizer ({error})")
            return None

    def _token_tables(self) -> tuple[TokenTables, ...]:
        """What sends text to the trackers, where the user wants that."""
        if self._text is None or self._options.log_tokens is not True:
            return ()
        return (
            TokenTables(self.trainer, self._annotate, wandb="wandb" not in self._options.sinks),
        )

    def _annotate(self, tokens: Sequence[ExtremeToken], phase: str) -> Sequence[ExtremeToken]:
        """The tokens, with their text when they are looked at, or as they are if that fails."""
        assert self._text is not None  # else the monitor is not given this
        guard = self._guards["text"]
        found = guard.run(self._text.annotate, tokens, phase)
        return tokens if found is None else Later(lambda: guard.run(found) or tokens)

    def _objective_values(
        self, pair: str, values: Mapping[str, float], histogram: Array
    ) -> Mapping[str, float]:
        """Penalty and clip range, nothing if that fails."""
        return self._guards["objective"].run(self._objective.values, pair, values, histogram) or {}

    def _count_error(self) -> None:
        self._monitor.errors += 1

    def _given_up(self, hook: str) -> None:
        if hook in CAPTURE:
            self._monitor.impaired = True


def everywhere(mine: bool) -> bool:
    """Whether something holds on every rank: a collective in a distributed run."""
    group = default_group()
    if group is None:
        return mine
    flag = torch.tensor(float(mine), device=communication_device(group))
    dist.all_reduce(flag, dist.ReduceOp.MIN, group=group)
    return bool(flag)


def evaluation_prefix(logs: Iterable[str]) -> str | None:
    """``"eval"`` (or what the user called it) for an evaluation's row, None for training's.

    `Trainer.evaluate` adds ``{prefix}_runtime`` to its row; the summary at the end of training is
    ``train_runtime``. All ranks log the same keys, so all ranks agree.
    """
    for key in logs:
        prefix, found, _ = key.partition("_runtime")
        if found and prefix != "train":
            return prefix
    return None
