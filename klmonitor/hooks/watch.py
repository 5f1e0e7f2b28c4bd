"""One trainer being watched: what every adapter does with it, whatever the trainer.

The monitor stands behind a boundary for each hook; a step's end does what `on_alert` asks for; the
text of tokens is made where it may be; words say what was bound, what was not and why.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Any

import torch
import torch.distributed as dist

from klmonitor.boundary import Boundary, say
from klmonitor.hooks.actions import ACTIONS, Actions
from klmonitor.hooks.audit import Audit
from klmonitor.hooks.feed import Capture, held_pairs
from klmonitor.hooks.handle import Handle
from klmonitor.hooks.objective import Objective, PenaltyRead
from klmonitor.hooks.options import Options
from klmonitor.hooks.progress import Progress
from klmonitor.hooks.text import TokenText
from klmonitor.hooks.wraps import Wrap
from klmonitor.monitor import Monitor
from klmonitor.numbers.buckets import Array
from klmonitor.numbers.receipt import by_pair
from klmonitor.numbers.receiptwords import measured
from klmonitor.numbers.runvalues import PREFIX
from klmonitor.pairs import POLICIES
from klmonitor.record.files import ALERTS
from klmonitor.report import ExtremeToken, Later, Report
from klmonitor.summary.reduce import Ranks, default_ranks, world_of

CAPTURE = ("log-probs", "generation", "loss")
"""Hooks without which numbers are missing or wrong: one given up makes klmonitor/active 0."""
OTHERS = ("log", "action", "text", "objective", "audit")
CONCLUDE_SECONDS = 1.0
"""What the end of training may wait for rows to be written."""
ALWAYS, OUTERMOST = "step", "callback"
"""Boundaries that never rest: of what other ranks wait for, and around every entry of ours."""


class Watch:
    """What is bound to a trainer, and the monitor behind it.

    Args:
        what: the trainer in words: ``"GRPOTrainer (TRL 1.16.0)"``.
        options: what the user asked for.
        active: whether anything is bound at all.
        run_dir: of the record; None: there is none.
        pairs: names of the pairs to watch; None: those that the policies allow.
        objective: what the trainer's objective does with the ratios.
        penalty: the KL term that its options tell of; the user's own comes first.
        text: decodes extreme tokens; None: nobody does.
        main: whether this process speaks for all.
        settings: the rest of what `Monitor` is given.

    Attributes:
        monitor: the monitor.
        run: what the adapter tells of the run, for `Monitor.step`.
        guards: a boundary a hook.
        handle: what the user holds.
        report: the last optimizer step's report.
        active: whether anything is bound.
        capture: how log-probs are had; None: not at all.
        wraps: the functions that were replaced.
        audit: looks at logits now and then; None: nobody does.
        on_detach: called when the trainer is let go.
    """

    def __init__(
        self,
        what: str,
        options: Options,
        *,
        active: bool,
        run_dir: Path | None,
        pairs: tuple[str, ...] | None,
        objective: Objective,
        text: TokenText | None,
        main: bool,
        penalty: PenaltyRead | None = None,
        **settings: Any,
    ) -> None:
        self.what, self.active = what, active
        self.report: Report | None = None
        self.capture: Capture | None = None
        self.wraps: list[Wrap] = []
        self.audit: Audit[Any] | None = None
        self.on_detach: Callable[[], None] = lambda: None
        self.text = text
        self.run = Progress()
        self._main, self._pairs = main, pairs
        self._objective = objective
        given = by_pair(options.penalty)
        self._penalty = PenaltyRead(given) if given else penalty or PenaltyRead()
        self._actions = Actions(options.on_alert, options.rules)
        self._asked: frozenset[str] = frozenset()
        self._wanted: set[str] = set()
        self.monitor = Monitor(
            run_dir=run_dir,
            metrics=options.metrics,
            rules=options.rules,
            groups=options.groups,
            pairs=pairs,
            log_tokens=options.log_tokens,
            max_disk=options.max_disk,
            strict=options.strict,
            notify=options.notify,
            half_life=options.half_life,
            extra_values=self._objective_values,
            annotate=self.annotate if text else None,
            words=self.words if text else None,
            penalty=self._penalty.penalties,
            **settings,
        )
        log = self.monitor.log
        self.guards = {
            # What fails on the record's thread cannot be raised into the trainer.
            name: Boundary(
                name, log, vital=name in CAPTURE, strict=options.strict and name != "text"
            )
            for name in (*CAPTURE, *OTHERS)
        }
        self.guards |= {
            name: Boundary(name, log, patience=None, strict=options.strict)
            for name in (ALWAYS, OUTERMOST)
        }
        self.handle = Handle(self.monitor, self.detach, self.described)

    # --- steps -------------------------------------------------------------------------------
    def finish_step(self, step: int) -> None:
        """The optimizer has stepped; collective."""
        known = self.guards[OUTERMOST](self._known) or {}
        if self.audit is not None:
            self.guards["audit"].always(self.audit.before_step)
        self.report = self.guards[ALWAYS](self.monitor.step, step, run=known)
        if self.audit is not None:
            self.guards["audit"].always(self.audit.after_step)
        self._decide(self.report)
        if self.text is not None:
            self.text.forget("train")

    def _known(self) -> dict[str, float]:
        """What is known of the run at the end of a step, and what the one before asked for."""
        known = self.run.values()
        self.run.stepped()
        return {**known, **dict.fromkeys(self._asked, 1.0)}

    def _decide(self, report: Report | None) -> None:
        """What alerts ask for is done at once by one process, of several by all at the next step.

        A rule or a function of the user's may fail on one rank alone: then its alert is told on
        the others only, and what these would do by themselves training's collectives wait for.
        """
        self._asked = frozenset()
        if report is None:
            return
        for action in ACTIONS:
            if report.run_values.get(PREFIX + action) == 1:
                self._want(action, f"the step before {report.step}")
        if not (told := report.alerts):
            return
        asked = self._actions(told, self.guards["action"].always)
        if world_of(default_ranks()) > 1:
            self._asked = asked
            return
        for action in sorted(asked):
            self._want(action, f"step {report.step}")

    def _want(self, action: str, who: str) -> None:
        self._wanted.add(action)
        self.say(f"on_alert: {action}, as {who} asks for it")

    def wanted(self) -> set[str]:
        """The actions that alerts have asked for since the last time."""
        wanted, self._wanted = self._wanted, set()
        return wanted

    def finish_evaluation(self, step: int) -> Report | None:
        """Close an evaluation; collective."""
        report = self.guards[ALWAYS](self.monitor.step, step, phase="eval")
        if self.text is not None:
            self.text.forget("eval")
        return report

    def state(self) -> dict[str, Any]:
        """What a resumed run continues from."""
        return self.guards[ALWAYS](self.monitor.state_dict) or {}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a checkpoint."""
        self.guards[ALWAYS](self.monitor.load_state_dict, state)

    def detach(self) -> None:
        """Leave the trainer as it was, and close the monitor."""
        if not self.active:
            return
        self.active = False
        guard = self.guards[OUTERMOST]
        for wrap in reversed(self.wraps):
            guard(wrap.undo)
        if self.capture is not None:
            guard(self.capture.close)
        guard(self.on_detach)
        self.monitor.close()

    # --- words -------------------------------------------------------------------------------
    @property
    def held(self) -> tuple[str, ...]:
        """Names of the pairs that the captured policies make."""
        sources = self.capture.sources() if self.capture is not None else {}
        return held_pairs(self._pairs, tuple(sources))

    def described(self) -> str:
        """`describe`, or that it failed."""
        return self.guards[OUTERMOST](self.describe) or "klmonitor cannot be described, see the log"

    def describe(self) -> str:
        """What was bound, what was not and why, and what has been seen."""
        if self.capture is None:
            return "klmonitor is off (KLMONITOR_DISABLE is set): nothing is bound"
        state = "watches" if self.active else "was detached from"
        lines = [f"klmonitor {state} {self.what}"]
        sources, missing = self.capture.sources(), self.capture.missing()
        for policy in POLICIES:
            seen = self.capture.feed.seen.get(policy, 0)
            if policy in sources:
                lines.append(f"  {policy:8}{sources[policy]} ({seen} micro-batches so far)")
            else:
                lines.append(f"  {policy:8}not held: {missing[policy]}")
        lines.append(f"  pairs   {', '.join(self.held) or 'none'}")
        lines += [f"  judged  {line}" for line in self.monitor.describe(self.held).splitlines()]
        lines += self._penalty.lines()
        lines += self._measured()
        lines += [f"  record  {line}" for line in self.monitor.record_status()]
        lines += [f"  absent: {name}: {what}" for name, what in self.capture.absent().items()]
        lines += [f"  given up: {name}" for name, guard in self.guards.items() if guard.resting]
        return "\n".join(lines)

    def _measured(self) -> list[str]:
        """What the last step's tokens made of the KL term, and the audit."""
        pairs = {} if self.report is None else self.report.pairs
        told = [(name, measured(pair)) for name, pair in pairs.items() if pair.penalty]
        lines = [
            f"          {name} at step {self.report.step}: {text}"
            for name, text in told
            if text and self.report is not None
        ]
        return lines if self.audit is None else [*lines, self.audit.describe()]

    def announce(self, remedy: str) -> None:
        """One line: what is bound, where the record is, the next command.

        Args:
            remedy: the line that gives a trainer without a second distribution one.
        """
        assert self.capture is not None  # the only caller has made it
        place = self.monitor.run_dir
        look = "" if place is None else f"; look: tail -F {quote(str(place / ALERTS))}"
        record = "no record" if place is None else f"record in {place}"
        self.say(
            f"watching {self.what}: {', '.join(self.capture.sources())}; "
            f"pairs {', '.join(self.held) or 'none'}; {record}{look}"
        )
        if not self.held and self.monitor.log.read().active:
            self.say(
                f"{self.what} holds no second distribution to compare the policy with (beta = 0, "
                f"no adapters). To get one, {remedy}"
            )

    def warn_of_absent(self) -> None:
        """One warning that names the private functions which this trainer lacks."""
        assert self.capture is not None  # the only caller has made it
        absent = self.capture.absent()
        if not absent:
            return
        found = "; ".join(f"no {name}: {what}" for name, what in absent.items())
        if not self.held:
            self.monitor.log.stop("capture", found)
        say("%s has %s%s", self.what, found, "" if self.held else ", so klmonitor is off")

    def conclude(self) -> None:
        """One line at the end of training: alerts, what failed on the way, where to look."""
        self.monitor.flush(CONCLUDE_SECONDS)  # what is lost is known then
        self.say(self.monitor.conclusion())

    def say(self, line: str) -> None:
        """A line on the console of the main process."""
        if self._main:
            with suppress(Exception):  # a stream that is closed, or full
                sys.stderr.write(f"klmonitor: {line}\n")

    # --- behind boundaries -------------------------------------------------------------------
    def annotate(self, tokens: Sequence[ExtremeToken], phase: str) -> Sequence[ExtremeToken]:
        """The tokens, with their text when they are looked at, or as they are if that fails."""
        assert self.text is not None  # else the monitor is not given this
        guard = self.guards["text"]
        found = guard(self.text.annotate, tokens, phase)
        return tokens if found is None else Later(lambda: guard(found) or tokens)

    def words(self, ids: Sequence[int]) -> Sequence[str]:
        """The text of each of some token ids; nothing if that fails."""
        assert self.text is not None  # else the monitor is not given this
        return self.guards["text"](self.text.words, ids) or ()

    def _objective_values(
        self, pair: str, values: Mapping[str, float], histogram: Array
    ) -> Mapping[str, float]:
        """Penalty and clip range, nothing if that fails."""
        return self.guards["objective"](self._objective.values, pair, values, histogram) or {}


def everywhere(mine: bool) -> bool:
    """Whether something holds on every rank: a collective in a distributed run."""
    ranks = default_ranks()
    if ranks is None:
        return mine
    flag = torch.tensor(float(mine), device=_communication_device(ranks))
    dist.all_reduce(flag, dist.ReduceOp.MIN, group=ranks)
    return bool(flag)


def _communication_device(ranks: Ranks) -> torch.device:
    """Where tensors must be for the ranks' own collectives."""
    if "nccl" in str(dist.get_backend(ranks)):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
