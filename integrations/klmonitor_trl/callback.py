"""The callback that binds a trainer and closes each optimizer step.

Order of events in `transformers.Trainer`: the optimizer steps, ``global_step`` grows,
``on_step_end``, ``Trainer.log``. So a step is reduced in ``on_step_end``, once and on every rank,
whether or not anything was captured there, and its numbers join the row that ``log`` is about
to send.
"""

from __future__ import annotations

import sys
from typing import Any

from transformers import TrainerCallback

from klmonitor.attachment import Handle, Options, disabled
from klmonitor.report import Report
from klmonitor_trl.watch import Watch, log_prob_function

DEPTH = 32
"""Frames above an event in which its trainer is looked for."""


class KLMonitorCallback(TrainerCallback):  # type: ignore[misc]
    """Watch the trainer that this callback is given to: ``callbacks=[KLMonitorCallback()]``.

    Takes the options of `klmonitor.attach`. It binds when training begins, so an evaluation
    before that is not seen; `klmonitor.attach(trainer)` binds at once.
    """

    def __init__(self, **options: Any) -> None:
        """A callback that is not bound yet.

        Raises:
            TypeError: an option is unknown.
            ValueError: an option has a value that cannot work.
        """
        self.options = Options.parse(options)
        self._watch: Watch | None = None

    @property
    def handle(self) -> Handle | None:
        """The handle, None before training begins."""
        return None if self._watch is None else self._watch.handle

    @property
    def report(self) -> Report | None:
        """The report of the last optimizer step, None before the first."""
        return None if self._watch is None else self._watch.report

    def bind(self, trainer: Any) -> None:
        """Watch a trainer.

        Raises:
            TypeError: the trainer has not the functions that hold log-probs.
            ValueError: it is watched already, or an option cannot work with it.
        """
        log_probs = log_prob_function(trainer)
        bound = [self, *trainer.callback_handler.callbacks]
        if any(isinstance(one, KLMonitorCallback) and one.active for one in bound):
            raise ValueError(
                f"this {type(trainer).__name__} is watched already: use the handle that attach() "
                "returned, or call its detach() first"
            )
        self._watch = Watch(trainer, log_probs, self.options, enabled=not disabled())
        self._watch.on_detach = lambda: trainer.remove_callback(self)

    @property
    def active(self) -> bool:
        """Whether a trainer is being watched."""
        return self._watch is not None and self._watch.active

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Bind, if `attach` has not done so."""
        if self._watch is None:
            self.bind(self._find_trainer())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the step: reduce, judge, record."""
        if self.active and self._watch is not None:
            self._watch.finish_step(state.global_step)

    def on_predict(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Close a prediction, which TRL runs as an evaluation that nothing logs."""
        if self.active and self._watch is not None:
            self._watch.finish_evaluation(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say what came of it."""
        if self.active and self._watch is not None:
            self._watch.conclude()

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
        raise RuntimeError(
            "KLMonitorCallback did not find its trainer: use klmonitor.attach(trainer) instead"
        )
