"""Where a fault is made: named functions of ours, and those of others that ours call.

`Faults` wraps them all and lets the n-th call of one of them raise. What is called before it is
armed, such as a monitor's setup, is not counted, nor what others call among themselves: a tracker's
thread that fails is not ours to save.
"""

from __future__ import annotations

import copy
import importlib
import sys
import threading
from collections import Counter
from typing import Any

import pytest

from klmonitor.summary import pulls, signatures, unclipped
from klmonitor.summary.passes import TOKENS

ERRORS = (OSError(28, "No space left on device"), MemoryError("made by a test"), ValueError("made"))

SITES = (
    # what is observed
    "klmonitor.summary.intake:build",
    "klmonitor.summary.intake:accumulate",
    "klmonitor.summary.intake:default_pairs",
    "klmonitor.summary.intake:Intake.add",
    "klmonitor.summary.intake:Intake.take",
    "klmonitor.summary.groups:Groups.rows",
    "klmonitor.summary.passes:Kernel._add",
    "klmonitor.summary.passes:compare",
    "klmonitor.summary.numba_pass:add",
    "klmonitor.summary.signature_pass:add",
    "klmonitor.summary.pull_pass:add",
    "klmonitor.summary.unclipped_pass:add",
    "klmonitor.summary.state:Summary.empty",
    "klmonitor.monitor.core:Monitor._place",
    # a step
    "klmonitor.monitor.stepnumbers:sums_of",
    "klmonitor.monitor.stepnumbers:Running.advance",
    "klmonitor.monitor.stepnumbers:pair_reports",
    "klmonitor.monitor.core:judged",
    "klmonitor.monitor.judge:judged",
    "klmonitor.monitor.judge:RuleSet.judge",
    "klmonitor.monitor.core:LoggedSteps.keep",
    "klmonitor.monitor.core:LoggedSteps.take",
    "klmonitor.monitor.flags:Flags.own",
    "klmonitor.numbers.runvalues:named",
    "klmonitor.hooks.progress:Progress.values",
    "klmonitor.hooks.progress:Progress.stepped",
    "klmonitor.monitor.judge:marked",
    "klmonitor.rules.ruleset:Track.read",
    "klmonitor.rules.ruleset:Track.take",
    "klmonitor.rules.ruleset:verdict",
    "klmonitor.rules.ruleset:RuleSet._announced",
    "klmonitor.numbers.assemble:extreme_tokens",
    # what leaves it
    "klmonitor.sinks.delivery:Delivery._write",
    "klmonitor.sinks.base:FunctionSink.__call__",
    "klmonitor.sinks.tensorboard:TensorBoardSink.__call__",
    "klmonitor.sinks.tensorboard:TensorBoardSink.close",
    "klmonitor.sinks.console:ConsoleSink.__call__",
    "klmonitor.record.writer:RecordWriter.step",
    "klmonitor.record.writer:RecordWriter.alert",
    "klmonitor.record.writer:RecordWriter.tokens",
    "klmonitor.record.writer:encode_report",
    "klmonitor.record.writer:encode_row",
    "klmonitor.record.writer:encode_tokens",
    "klmonitor.record.jsonl:LineFile.append",
    "klmonitor.background:Worker.submit",
    "klmonitor.background:Worker.flush",
    "klmonitor.background:Worker.close",
    # others'
    "os:write",
    "os:fstat",
    "json:dumps",
    "threading:Thread.start",
    "logging:Logger.warning",
    "logging:Logger.log",
    "time:time",
)

OURS = ("klmonitor", "tests.faults")
"""Packages whose calls are counted."""


class Faults:
    """All sites, wrapped; the n-th call of one of them raises.

    Attributes:
        calls: of each site since it was armed.
        forced: faults that were made since then.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: Counter[str] = Counter()
        self.forced = 0
        self._targets: dict[tuple[str, int], BaseException] = {}
        self._armed = False
        self._lock = threading.Lock()
        # one that rests here rests nowhere else
        for kernel in (TOKENS, *(one.KERNEL for one in (signatures, pulls, unclipped))):
            patch.setattr(kernel, "_boundary", copy.copy(kernel._boundary))
        for site in SITES:
            module, _, path = site.partition(":")
            *owners, name = path.split(".")
            owner: Any = importlib.import_module(module)
            for one in owners:
                owner = getattr(owner, one)
            patch.setattr(owner, name, self._wrapped(site, owner, name))

    def arm(self, *targets: tuple[str, int, BaseException]) -> None:
        """Count from now on, and let the n-th call (from 1) of each of some sites raise."""
        self.calls.clear()
        self.forced = 0
        self._targets = {(site, number): error for site, number, error in targets}
        self._armed = True

    def disarm(self) -> None:
        """Nothing raises any more."""
        self._armed = False

    def _wrapped(self, site: str, owner: Any, name: str) -> Any:
        raw = vars(owner).get(name) if isinstance(owner, type) else None
        original = getattr(owner, name)
        plain = (
            raw if raw is not None and not isinstance(raw, (classmethod, staticmethod)) else None
        )
        function = plain or original

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if self._armed and sys._getframe(1).f_globals["__name__"].startswith(OURS):
                with self._lock:
                    self.calls[site] += 1
                    error = self._targets.get((site, self.calls[site]))
                    self.forced += error is not None
                if error is not None:
                    raise type(error)(*error.args)  # its own: an error raised twice is chained
            return function(*args, **kwargs)

        return (
            wrapper if plain is not None or not isinstance(owner, type) else staticmethod(wrapper)
        )
