"""The callback that binds a trainer, closes each optimizer step, and travels in checkpoints.

Order of events in `transformers.Trainer`: the optimizer steps, ``global_step`` grows,
``on_step_end``, ``Trainer.log``. So a step is reduced in ``on_step_end``, once and on every rank,
whether or not anything was captured there, and its numbers join the row that ``log`` is about
to send.

A checkpoint holds `state` in ``trainer_state.json``. A resumed trainer may replace this object by
a new one of the same class (``restore_callback_states_from_checkpoint``), so nothing lives here:
the new one takes over the trainer's watch, or the options that the old one was given.
"""

from __future__ import annotations

import sys
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from klmonitor.hooks.handle import Handle
from klmonitor.hooks.options import Options
from klmonitor.hooks.watch import OUTERMOST
from klmonitor.report import Report
from klmonitor_trl.watch import TrainerWatch, watch_of

DEPTH = 32
"""Frames above an event in which its trainer is looked for."""
_given: WeakKeyDictionary[Any, Options] = WeakKeyDictionary()
"""Trainer -> the options of the callback that it was built with."""


class KLMonitorCallback(TrainerCallback, ExportableState):  # type: ignore[misc]  # transformers: untyped
    """Watch the trainer that this callback is given to: ``callbacks=[KLMonitorCallback()]``.

    Takes the options of `klmonitor.attach`. It binds when training begins, so an evaluation
    before that is not seen; `klmonitor.attach(trainer)` binds at once.
    """

    watch_class: ClassVar[type[TrainerWatch]] = TrainerWatch

    def __init__(self, **options: Any) -> None:
        """A callback that is not bound yet.

        Raises:
            TypeError: an option is unknown.
            ValueError: an option has a value that cannot work.
        """
        self.options = Options.parse(options)
        self._watch: TrainerWatch | None = None

    @property
    def handle(self) -> Handle | None:
        """The handle, None before training begins."""
        return None if self._watch is None else self._watch.handle

    @property
    def report(self) -> Report | None:
        """The report of the last optimizer step, None before the first."""
        return None if self._watch is None else self._watch.report

    @property
    def active(self) -> bool:
        """Whether a trainer is being watched."""
        return self._watch is not None and self._watch.active

    def bind(self, trainer: Any) -> None:
        """Watch a trainer; in a distributed run call it on every rank.

        Raises:
            TypeError: the trainer cannot be watched.
            ValueError: it is watched already, or an option cannot work with it.
        """
        self._take(self.watch_class(trainer, self.options))

    def join(self, trainer: Any) -> Handle:
        """`bind` to a trainer that is built already, and be called by it from now on.

        Raises:
            TypeError, ValueError: as `bind`.
        """
        self.bind(trainer)
        trainer.add_callback(self)
        assert self.handle is not None  # it is bound
        return self.handle

    def _take(self, watch: TrainerWatch) -> None:
        """Close the steps of a watch from now on."""
        self._watch = watch
        watch.on_detach = lambda: watch.trainer.remove_callback(self)

    # --- checkpoints -------------------------------------------------------------------------
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the monitor's running numbers and episodes."""
        monitor = self._watch.state() if self.active and self._watch is not None else {}
        return {"args": {}, "attributes": {"saved": monitor}}

    def _resume(self, state: Any) -> None:
        """Continue from the checkpoint that the trainer has just loaded, if it knows us."""
        name = type(self).__name__
        kept = state.stateful_callbacks.get(name)
        if isinstance(kept, list):  # one a callback of the class; only one of them was ever bound
            kept = next((one for one in kept if one["attributes"].get("saved")), None)
        saved = (kept or {}).get("attributes", {}).get("saved")
        if saved and state.global_step and self._watch is not None:
            self._watch.resume(saved)
        # A checkpoint of an unwatched run has no entry for us, and saving one needs it.
        state.stateful_callbacks.setdefault(name, self.state())

    # --- events ------------------------------------------------------------------------------
    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember the options, should this object be replaced."""
        trainer = self._find_trainer()
        if trainer is not None:
            _given[trainer] = self.options

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Bind, if that was not done; continue a resumed run."""
        if self._watch is None:
            trainer = self._find_trainer()
            if trainer is None:
                raise RuntimeError(
                    "KLMonitorCallback did not find its trainer: use klmonitor.attach(trainer)"
                )
            watch = watch_of(trainer)
            if watch is not None:
                self._take(watch)
            else:
                self.options = _given.get(trainer, self.options)
                self.bind(trainer)
        if self.active and self._watch is not None:
            self._watch.guards[OUTERMOST](self._resume, state)
            self._watch.guards[OUTERMOST](self._watch.begin, state.global_step)

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """The learning rate of the update: after it the scheduler has the next one's."""
        if self.active and self._watch is not None and optimizer is not None:
            self._watch.guards[OUTERMOST](self._watch.run.updates_at, optimizer)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the step: reduce, judge, record, and do what `on_alert` asks for."""
        if self.active and self._watch is not None:
            guard = self._watch.guards[OUTERMOST]
            guard(self._watch.end_step, state.global_step, control)

    def on_predict(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Close a prediction, which TRL runs as an evaluation that nothing logs."""
        if self.active and self._watch is not None:
            self._watch.guards[OUTERMOST](self._watch.finish_evaluation, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say what came of it."""
        if self.active and self._watch is not None:
            self._watch.guards[OUTERMOST](self._watch.conclude)

    def _find_trainer(self) -> Any:
        """The trainer that called us: events are not given it, but it is on the stack."""
        frame = sys._getframe(1)
        for _ in range(DEPTH):
            owner = frame.f_locals.get("self")
            handler = getattr(owner, "callback_handler", None)
            if handler is not None and self in handler.callbacks:
                return owner
            if frame.f_back is None:
                break
            frame = frame.f_back
        return None
