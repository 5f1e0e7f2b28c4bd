"""One of TRL's trainers being watched: what is wrapped, the step's end, the log row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any, ClassVar
from weakref import WeakSet

from torch import nn

from klmonitor.boundary import cause
from klmonitor.hooks.actions import CHECKPOINT, STOP
from klmonitor.hooks.objective import Objective, PenaltyRead
from klmonitor.hooks.options import Options, disabled
from klmonitor.hooks.progress import bits_of
from klmonitor.hooks.text import TokenText
from klmonitor.hooks.trackers import with_extras
from klmonitor.hooks.watch import OUTERMOST, Watch, everywhere
from klmonitor.hooks.wraps import Wrap
from klmonitor.report import Report
from klmonitor.sinks import select
from klmonitor_trl import describe
from klmonitor_trl.audit import audit_of
from klmonitor_trl.capture import BatchCapture
from klmonitor_trl.feed import TrainerCapture, TrainerFeed
from klmonitor_trl.kinds import capture_for, kind_of, watched_pairs
from klmonitor_trl.objective import beta_of, objective_of, penalty_of
from klmonitor_trl.reference import choose_reference
from klmonitor_trl.trackers import TokenTables

SYNC = "sync_target_model"
"""The function of TRL's callback that moves the reference (``sync_ref_model=True``)."""
_watches: WeakSet[TrainerWatch] = WeakSet()


def watch_of(trainer: Any) -> TrainerWatch | None:
    """The active watch of a trainer, None if it is not watched."""
    return next((one for one in _watches if one.trainer is trainer and one.active), None)


class TrainerWatch(Watch):
    """Binds a trainer on construction; in a distributed run, on every rank.

    Attributes:
        trainer: the trainer.
    """

    capture: TrainerCapture | None
    package: ClassVar[str] = "trl"
    title: ClassVar[str] = "TRL"
    """The package of the trainers, and what it is called."""

    def __init__(self, trainer: Any, options: Options) -> None:
        """Wrap the trainer's functions, unless KLMONITOR_DISABLE is set on any rank.

        Raises:
            TypeError: the trainer cannot be watched, or `reference` is of a wrong kind.
            ValueError: it is watched already, or an option cannot work with it.
        """
        kind = self.kind_of(trainer)
        name = type(trainer).__name__
        if watch_of(trainer) is not None:
            raise ValueError(
                f"this {name} is watched already: use the handle that attach() returned, or call "
                "its detach() first"
            )
        self.trainer = trainer
        self._kind = kind
        self._syncing: list[Any] = []
        self._main = trainer.is_world_process_zero()
        self._options = options
        self._reference = choose_reference(trainer, kind, options, self.say)
        active = everywhere(not disabled())
        directory = options.directory(trainer.args.output_dir) if active else None
        pairs = watched_pairs(trainer, kind)
        text = self._token_text() if active else None
        tables: tuple[TokenTables, ...] = ()
        if text is not None and options.log_tokens is True:
            tables = (TokenTables(trainer, self.annotate, wandb="wandb" not in options.sinks),)
        extras = with_extras(options.sinks, directory, tokens=options.log_tokens == "local")
        number = version(self.package)
        objective, penalty = self.read(trainer, kind)
        super().__init__(
            f"{name} ({self.title} {number})",
            options,
            active=active,
            run_dir=directory,
            pairs=pairs,
            objective=objective,
            penalty=penalty,
            text=text,
            main=self._main,
            sinks=(*extras, *tables),
            merge_rows=True,
            meta={"trainer": name, self.package: number},
        )
        if active:
            feed = TrainerFeed(
                self.monitor, self.guards, text, pairs, run=self.run, trainer=trainer
            )
            self.capture = self.capture_for(feed)
            self.audit = audit_of(
                trainer, kind, options, self.monitor, main=self._main, say=self.say
            )
            if isinstance(self.capture, BatchCapture):
                self.capture.audit = self.audit
            wanted = {**self.capture.wraps(), "log": self._log}
            self.wraps = [Wrap(trainer, name, around) for name, around in wanted.items()]
            self.warn_of_absent()
            self.announce(describe.remedy(trainer))
        _watches.add(self)

    # --- what packages on top of TRL have of their own ----------------------------------------
    def kind_of(self, trainer: Any) -> str:
        """Which capture fits.

        Raises:
            TypeError: none does; the message names what the trainer lacks.
        """
        return kind_of(trainer)

    def read(self, trainer: Any, kind: str) -> tuple[Objective, PenaltyRead]:
        """The objective and its KL term, as the trainer's attributes tell them."""
        return objective_of(trainer, kind), penalty_of(trainer, kind)

    def capture_for(self, feed: TrainerFeed) -> TrainerCapture:
        """The capture of the trainer's kind."""
        return capture_for(self.trainer, self._kind, feed, self._options, self._reference)

    # --- steps -------------------------------------------------------------------------------
    def begin(self, steps: int) -> None:
        """Training begins after so many optimizer steps, 0 where no checkpoint is resumed."""
        trainer = self.trainer
        unwrap = trainer.accelerator.unwrap_model
        reference = getattr(trainer, "ref_model", None)
        mixed = getattr(trainer.args, "bf16", False) or getattr(trainer.args, "fp16", False)
        given = self._options.reference
        self.run.begin(
            steps,
            unwrap(trainer.model),
            unwrap(reference) if isinstance(reference, nn.Module) else None,
            min(
                16 if mixed else math.inf,
                bits_of(given) if isinstance(given, nn.Module) else math.inf,
            ),
        )
        self.run.scores_when_generating = bool(self.capture and self.capture.scores_when_generating)
        for callback in trainer.callback_handler.callbacks:
            if hasattr(callback, SYNC) and callback not in self._syncing:
                self._syncing.append(callback)
                self.wraps.append(Wrap(callback, SYNC, self._sync))

    def _sync(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around TRL's function that moves the reference towards the policy."""
        result = original(*args, **kwargs)
        self.guards[OUTERMOST](self.run.synced)
        return result

    def finish_step(self, step: int) -> None:
        """The optimizer has stepped; collective."""
        self.guards[OUTERMOST](self._tell)
        super().finish_step(step)

    def _tell(self) -> None:
        self.run.beta = beta_of(self.trainer, self._kind)
        if self.capture is not None and self.capture.closes_in_log:
            self.run.updates_at(self.trainer.optimizer)  # no event tells of its updates

    def end_step(self, step: int, control: Any) -> None:
        """The optimizer has stepped; collective. `control` takes what alerts ask for."""
        if self.capture is not None and not self.capture.closes_in_log:
            self.finish_step(step)
        wanted = self.wanted()
        if CHECKPOINT in wanted:
            control.should_save = True
        if STOP in wanted:
            control.should_training_stop = True

    def finish_evaluation(self, step: int) -> Report | None:
        """Close an evaluation; collective."""
        if self._reference is not None:
            self._reference.start_evaluation()
        return super().finish_evaluation(step)

    def describe(self) -> str:
        """What was bound, what was not and why, and what has been seen."""
        lines = super().describe()
        if self._reference is not None and self._reference.passes:
            mean = self._reference.seconds / self._reference.passes
            lines += f"\n  a reference pass takes {1e3 * mean:.0f} ms"
        return lines

    # --- the trainer's log -------------------------------------------------------------------
    def _log(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around the trainer's `log`: our numbers join the row before it is sent."""
        logs = kwargs["logs"] if "logs" in kwargs else (args[0] if args else None)
        if isinstance(logs, dict):
            self.guards[OUTERMOST](self._join, logs)
        return original(*args, **kwargs)

    def _join(self, logs: dict[str, Any]) -> None:
        """Close what a row closes, and add to it."""
        prefix = evaluation_prefix(logs)
        step = self.trainer.state.global_step
        if prefix is not None:
            report = self.finish_evaluation(step)
            self.guards["log"](self._join_evaluation, logs, prefix, report)
        else:
            if self.capture is not None and self.capture.closes_in_log:
                self.capture.in_log()
                self.finish_step(step)
            self.guards["log"](self._join_row, logs)

    def _join_row(self, logs: dict[str, Any]) -> None:
        """The summary of the steps since the last row."""
        report = self.monitor.take_logged()
        if report is not None:
            logs.update(select(self._options.metrics, report))
            logs["klmonitor/active"] = report.run_values["klmonitor/active"]

    def _join_evaluation(self, logs: dict[str, Any], prefix: str, report: Report | None) -> None:
        """The evaluation's means and errors, under its own name."""
        if report is not None:
            values = select(self._options.metrics, report)
            logs.update({f"{prefix}_{name.removeprefix('eval/')}": x for name, x in values.items()})

    def _token_text(self) -> TokenText | None:
        """What decodes extreme tokens: on the process that writes the record, if it may."""
        tokenizer = getattr(self.trainer, "processing_class", None)
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        wanted = self._options.log_tokens is not False and self._main
        if not wanted or not hasattr(tokenizer, "decode"):
            return None
        try:
            return TokenText(tokenizer, rank=0)
        except Exception as error:  # noqa: BLE001  # whatever a tokenizer does when it is copied
            self.say(f"tokens are recorded without text: no copy of the tokenizer ({cause(error)})")
            return None


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
