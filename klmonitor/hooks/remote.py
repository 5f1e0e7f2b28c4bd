"""The watch of a driver whose workers hold the log-probs: their sums come through a mailbox."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from klmonitor.boundary import Boundary, cause
from klmonitor.hooks.feed import Around, Capture, Feed
from klmonitor.hooks.mailbox import Letter, Mailbox, is_timeout
from klmonitor.hooks.objective import Objective, PenaltyRead
from klmonitor.hooks.options import Options
from klmonitor.hooks.roll import Roll
from klmonitor.hooks.text import decoder
from klmonitor.hooks.trackers import with_extras
from klmonitor.hooks.watch import Watch
from klmonitor.report import Report
from klmonitor.sinks import check_metrics, select


class RemoteWatch(Watch):
    """One run being watched from its driver.

    Args:
        what: the trainer in words.
        options: what the user asked for.
        output_dir: where the trainer writes; None: not said.
        objective: what the trainer's objective does with the ratios.
        penalty: the KL term that its options tell of.
        tokenizer: decodes extreme tokens; None: nobody does.
        begins: the last step without an update of the policy (a critic's warm-up).
        notes: pair -> what there is to know of it before its numbers are read.
        meta: what the record says of the run.
        settings: the rest of what `Monitor` is given.

    Attributes:
        roll: which workers have been heard of.
    """

    capture: Capture

    def __init__(
        self,
        what: str,
        options: Options,
        *,
        output_dir: str | None,
        objective: Objective,
        penalty: PenaltyRead,
        tokenizer: Any,
        begins: int = 0,
        notes: Mapping[str, str] | None = None,
        meta: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        check_metrics(options.metrics)
        directory = options.directory(output_dir)
        self._options = options
        self._box: Mailbox | None = None
        self._closed_step: int | None = None
        super().__init__(
            what,
            options,
            active=True,
            run_dir=directory,
            pairs=None,
            objective=objective,
            penalty=penalty,
            text=decoder(tokenizer, options.log_tokens),
            main=True,
            sinks=with_extras(options.sinks, directory, tokens=options.log_tokens == "local"),
            process_group=False,
            notes=notes,
            meta=meta,
            **settings,
        )
        self.roll = Roll(self.monitor.log, begins)
        self.guards["mailbox"] = Boundary("the mailbox", self.monitor.log, vital=True)

    # --- steps -------------------------------------------------------------------------------
    def close_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Merge what the workers sent, and close the step; once a step.

        Args:
            step: the trainer's.
            metrics: the trainer's of that step, where values of the run are read.
        """
        if step == self._closed_step:
            return
        self._closed_step = step
        self.read(step, metrics)
        self.collect(step)
        self.finish_step(step)
        self.act()

    @abstractmethod
    def read(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Values of the run among a step's metrics."""

    @abstractmethod
    def act(self) -> None:
        """Do what alerts ask for, as the trainer's loop allows."""

    def collect(self, step: int) -> None:
        """Merge what the workers have sent of a step, and say who is missing."""
        if self._box is None:
            return
        letters, lost = self.guards["mailbox"](self._drain) or ([], 0)
        for letter in letters:
            self.monitor.add_part(letter.part)
        if letters:
            seen = self.capture.feed.seen
            seen["policy"] = seen.get("policy", 0) + len(letters)
        gone = self._box is None
        for line in () if gone else self.roll.call(letters, lost, step):
            self.monitor.note(line)
            self.say(line)

    def joined(self, data: Mapping[str, Any], step: int) -> dict[str, Any]:
        """A row of the trainer's with ours in it, if it is this step's."""
        report = self.report
        if report is None or report.step != step:
            return dict(data)
        mine = {name: x for name, x in self.row(report).items() if name not in data}
        return {**data, **mine}

    def row(self, report: Report) -> dict[str, float]:
        """What trackers get of a report."""
        active = report.run_values["klmonitor/active"]
        return {**select(self._options.metrics, report), "klmonitor/active": active}

    def finish(self) -> None:
        """The run is over."""
        self.conclude()
        self.monitor.close()

    # --- the mailbox -------------------------------------------------------------------------
    def open_mailbox(self, settings: Mapping[str, Any]) -> None:
        """Open the job's mailbox.

        Args:
            settings: what the workers shall know (`klmonitor.hooks.worker`).
        """
        wanted = {"watch": True, **settings}
        self._box = self.guards["mailbox"](Mailbox.open, wanted)

    def tell(self, settings: Mapping[str, Any]) -> None:
        """Say something more to whoever asks the mailbox."""
        if self._box is not None:
            self.guards["mailbox"](self._box.tell, settings)

    def _drain(self) -> tuple[list[Letter], int]:
        assert self._box is not None  # the only caller has it
        try:
            return self._box.drain()
        except Exception as error:
            if is_timeout(error):  # what came in waits there for the next step
                raise
            self._box = None
            self.monitor.log.stop("mailbox", f"it is gone ({cause(error)})")
            self.say(
                f"the mailbox is gone ({cause(error)}): workers are watched no more, the driver's "
                "own pairs and training go on"
            )
            return [], 0


class RemoteCapture(Capture):
    """The driver's share of the log-probs, and the words for the workers'.

    Args:
        feed: where log-probs go.
        absent: ``module.name`` -> what is done without it.
    """

    def __init__(self, feed: Feed, absent: Callable[[], Mapping[str, str]]) -> None:
        self.feed = feed
        self._absent = absent

    def wraps(self) -> dict[str, Around]:
        """Nothing of one object: the trainer's functions are replaced where they are defined."""
        return {}

    def missing(self) -> dict[str, str]:
        """Policy -> why it is not to be had."""
        return {"old": "it was not passed", "policy": "it was not passed"}

    def absent(self) -> dict[str, str]:
        """Function that this version of the trainer lacks -> what is done without it."""
        return {name: f"left out ({why})" for name, why in self._absent().items()}


def refuse(options: Options, names: Collection[str], why: str) -> None:
    """Refuse options that a trainer cannot have.

    Raises:
        ValueError: one of them was given; the message ends with `why`.
    """
    for name in names:
        if getattr(options, name) != getattr(Options(), name):
            raise ValueError(f"option {name} is {why}")


def version_of(package: str) -> str:
    """Of a trainer's package that is installed, or runs from its sources."""
    try:
        return version(package)
    except PackageNotFoundError:
        return str(getattr(sys.modules.get(package), "__version__", "of unknown version"))
