"""One finding of the rules, as plain host data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from klmonitor.report.tokens import ExtremeToken


@dataclass(frozen=True)
class Alert:
    """One finding that opened (or got worse, or ended) at a step.

    Attributes:
        step: the step given to `Monitor.step`.
        kind: the rule's name, e.g. ``"spike"``; of several that tell one event the gravest.
        severity: ``"info"``, ``"warn"`` or ``"critical"``.
        pair: the pair it concerns, None if it concerns the run.
        message: one line: what happened, with numbers and units.
        believe: which estimator to believe, and why; empty if that is not the question.
        action: what to do first.
        source: where the rule and its threshold come from.
        phase: ``"open"``, ``"worse"`` or ``"end"``.
        since: the step at which the episode opened.
        values: the numbers behind the message.
        tokens: the extreme tokens named, if any (positions and ids; never text).
        means: what this usually means.
        muted: whether it is a known condition that nobody was told of.
        kinds: all rules that tell this event at this step, `kind` the first of them.
        cause: why the pair's policies disagree, in words, where it is known.
    """

    step: int
    kind: str
    severity: str
    pair: str | None
    message: str
    believe: str = ""
    action: str = ""
    source: str = ""
    phase: str = "open"
    since: int = 0
    values: Mapping[str, float] = field(default_factory=dict)
    tokens: tuple[ExtremeToken, ...] = ()
    means: str = ""
    muted: bool = False
    kinds: tuple[str, ...] = ()
    cause: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", tuple(self.kinds) or (self.kind,))

    @property
    def lines(self) -> list[tuple[str, str]]:
        """What there is to say beside the message, as (label, sentence), in reading order."""
        worse = f"step {self.since}, and got worse" if self.phase == "worse" else ""
        labelled = (
            ("muted", "a known condition: nobody was told" if self.muted else ""),
            ("since", worse),
            ("cause", self.cause),
            ("usually", self.means),
            ("believe", self.believe),
            ("do first", self.action),
            ("source", self.source),
        )
        return [(label, value) for label, value in labelled if value]

    def text(self) -> str:
        """The whole alert as plain text, one idea a line."""
        head = f"[{self.severity}] step {self.step}: {self.message}"
        return "\n".join([head, *(f"  {label}: {value}" for label, value in self.lines)])
