"""Trainers that hand over whole batches: nothing of theirs is wrapped."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from klmonitor.hooks.feed import Around, Capture, Feed
from klmonitor.hooks.objective import Objective, PenaltyRead
from klmonitor.hooks.options import Options, disabled
from klmonitor.hooks.text import decoder
from klmonitor.hooks.trackers import with_extras
from klmonitor.hooks.watch import Watch
from klmonitor.sinks import select

NOT_HERE = ("reference", "reference_every", "recompute", "audit_every", "audit_positions")
"""Options of trainers whose models are at hand."""


class HandedCapture(Capture):
    """What a trainer's batches hold, in words."""

    def __init__(self, feed: Feed, sources: Mapping[str, str], missing: Mapping[str, str]) -> None:
        """For one trainer; the words are of `sources` and `missing`."""
        self.feed = feed
        self._sources, self._missing = dict(sources), dict(missing)

    def wraps(self) -> dict[str, Around]:
        """Nothing."""
        return {}

    def sources(self) -> dict[str, str]:
        """Policy -> where its log-probs come from."""
        return self._sources

    def missing(self) -> dict[str, str]:
        """Policy -> why they are not to be had."""
        return self._missing


class HandedWatch(Watch):
    """A run whose batches are given to `take`, one a step, while it is `active`.

    Args:
        what: the trainer in words.
        options: what the user asked for.
        output_dir: where the trainer writes; None: not said.
        sources: policy -> where its log-probs come from.
        missing: policy -> why they are not to be had, of the others.
        remedy: what gives the run a second policy.
        tokenizer: decodes extreme tokens; None: nobody does.
        settings: as `Watch`'s.

    Attributes:
        speaks: whether this process is the one that logs for all.

    Raises:
        ValueError: an option cannot work here.
        OSError: the run directory cannot be made.
    """

    capture: HandedCapture | None

    def __init__(
        self,
        what: str,
        options: Options,
        *,
        output_dir: str | os.PathLike[str] | None,
        sources: Mapping[str, str],
        missing: Mapping[str, str],
        remedy: str,
        tokenizer: Any = None,
        objective: Objective | None = None,
        penalty: PenaltyRead | None = None,
        main: bool = True,
        **settings: Any,
    ) -> None:
        for name in NOT_HERE:
            if getattr(options, name) != getattr(Options(), name):
                raise ValueError(f"option {name} needs a model at hand: {what} has none")
        active = not disabled()
        directory = options.directory(output_dir) if active else None
        self._options, self.speaks = options, main
        super().__init__(
            what,
            options,
            active=active,
            run_dir=directory,
            pairs=None,
            objective=objective or Objective(),
            penalty=penalty,
            text=decoder(tokenizer, options.log_tokens) if main else None,
            main=main,
            sinks=with_extras(options.sinks, directory, tokens=options.log_tokens == "local"),
            **settings,
        )
        if active:
            feed = Feed(self.monitor, self.guards, self.text, run=self.run)
            self.capture = HandedCapture(feed, sources, missing)
            self.announce(remedy)

    def take(self, step: int, policies: Mapping[str, Tensor | Any], **layout: Any) -> None:
        """One step's batch: look at it, and close the step; collective.

        Args:
            step: the trainer's.
            policies: policy -> log-probs, in a layout of `Monitor.observe`.
            layout: the rest of what `Monitor.observe` takes.
        """
        if self.capture is not None:
            self.guards["log-probs"](self.capture.feed.observe, policies, phase="train", **layout)
            self.finish_step(step)

    def row(self, step: int) -> dict[str, float]:
        """What trackers get of a step; nothing if the last report is of another."""
        report = self.report
        if report is None or report.step != step:
            return {}
        active = report.run_values["klmonitor/active"]
        return {**select(self._options.metrics, report), "klmonitor/active": active}

    def finish(self) -> None:
        """The run is over."""
        self.conclude()
        self.monitor.close()
