"""A plain loop being watched: steps counted, ranks looked at, the monitor closed at the end.

    with Monitor(run_dir="runs/math").watch(optimizer) as watch:
        for batch in batches:
            watch.observe(policy=lp, ref=ref_lp, mask=mask)    # as often as there are micro-batches
            optimizer.step()                                   # closes the step, on every rank

Setup refuses what cannot work; in the loop nothing raises, and an error of the loop's own passes
through, with the record closed and a note of it on the time line.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol

from torch.optim import Optimizer

from klmonitor.boundary import cause, say
from klmonitor.report import Report

MOST = 200
"""Characters of an error that are noted: some messages hold tensors."""


class Stepper(Protocol):
    """What is used of a `Monitor`."""

    def observe(self, **given: Any) -> None:
        """Add a micro-batch."""

    def step(self, step: int, *, phase: str, run: Mapping[str, Any] | None) -> Report:
        """Close a step."""

    def note(self, text: str) -> None:
        """Put a notice on the time line."""

    def close(self) -> object:
        """Write what is queued."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run continues from."""


class LoopWatch:
    """What `Monitor.watch` returns: a context manager, or closed by hand with `close`.

    Attributes:
        steps: the number of the last step that was closed.
        report: its report; None before the first.
    """

    def __init__(self, monitor: Stepper, optimizer: Any, start: int) -> None:
        """See `Monitor.watch`."""
        self.steps = operator.index(start) - 1
        self.report: Report | None = None
        self._monitor = monitor
        self._waiting = 0
        self._closed = self._told = False
        self._hook = None if optimizer is None else _hooked(optimizer, self._stepped)

    def observe(self, **given: Any) -> None:
        """Add one micro-batch, as `Monitor.observe` takes it."""
        self._waiting += given.get("phase", "train") == "train"
        self._monitor.observe(**given)

    def step(self, *, phase: str = "train", run: Mapping[str, Any] | None = None) -> Report:
        """Close a step, on every rank: the next number is its own.

        Not where an optimizer closes them, but for ``phase="eval"``, which counts no step.

        Args:
            phase: which observations to close.
            run: what is known of the run, as `Monitor.step` takes it.
        """
        if phase == "train" and self._hook is not None:
            if not self._told:
                self._told = True
                say("the optimizer closes each step here: step() by hand was left out")
            return self.report or Report(step=max(self.steps, 0), pairs={})
        return self._close_step(phase, run)

    def _close_step(self, phase: str, run: Mapping[str, Any] | None) -> Report:
        if phase != "train":
            return self._monitor.step(max(self.steps, 0), phase=phase, run=run)
        self.steps, self._waiting = self.steps + 1, 0
        self.report = self._monitor.step(self.steps, phase=phase, run=run)
        return self.report

    def _stepped(self, optimizer: Optimizer, *_: Any) -> None:
        """After the optimizer's step, before a scheduler changes its rate."""
        rate = None
        with suppress(Exception):  # a user's optimizer may have no such groups
            rate = max(float(group["lr"]) for group in optimizer.param_groups)
        self._close_step("train", {"learning_rate": rate})

    def state_dict(self) -> dict[str, Any]:
        """For the loop's checkpoint; given back as ``watch(state=...)``."""
        return self._monitor.state_dict()

    def close(self) -> None:
        """Let the optimizer go, say what was never closed, and close the monitor."""
        if self._closed:
            return
        self._closed = True
        if self._hook is not None:
            self._hook.remove()
        if self._waiting and self.report is None:
            say("no step was closed: call step() once per optimizer step, or give the optimizer")
        elif self._waiting:
            say("%d micro-batches after step %d are left out", self._waiting, self.steps)
        self._monitor.close()

    def __enter__(self) -> LoopWatch:  # noqa: PYI034  # Self is Python's from 3.11 on
        """Watched since it was made."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Close; an error passes through."""
        if error is not None:
            self._waiting = 0  # of a step that never came to its end
            self._monitor.note(f"the loop ended with {cause(error)[:MOST]}")
        self.close()


def _hooked(optimizer: Any, hook: Any) -> Any:
    """A hook after each step of an optimizer, or of the one that accelerate's wrapper steps.

    Raises:
        TypeError: it is none whose steps can be seen.
    """
    inner = optimizer
    if type(optimizer).__module__.partition(".")[0] in ("accelerate", "lightning"):
        inner = getattr(optimizer, "optimizer", optimizer)
    if not isinstance(inner, Optimizer):
        raise TypeError(
            f"watch(optimizer) got a {type(inner).__module__}.{type(inner).__qualname__}, no "
            "torch.optim.Optimizer: leave it out, and call watch.step() once per optimizer step"
        )
    return inner.register_step_post_hook(hook)


def check_world(made_for: int, now: int, alone: bool = False) -> None:
    """Refuse a monitor that was made before its process group was.

    Args:
        made_for: number of processes when it was made.
        now: and now.
        alone: whether it was told to reduce over nobody.

    Raises:
        ValueError: they differ; on every rank alike.
    """
    if made_for != now:
        raise ValueError(
            f"this Monitor was made for {made_for} process{'es' * (made_for > 1)} and there are "
            f"{now}: make it after torch.distributed.init_process_group() (accelerate: after "
            "Accelerator()), or each rank keeps a record of its own"
        )
    said = os.environ.get("WORLD_SIZE", "1")
    if now == 1 and not alone and said not in ("", "0", "1"):
        say(
            "WORLD_SIZE is %s, but torch.distributed is not initialised: each process is watched "
            "alone",
            said,
        )
