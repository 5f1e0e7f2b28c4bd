"""What a rule is: a pure function of one reading, with the thresholds that belong to it.

Adding a rule is adding one `Rule` to the table of `klmonitor.rules.table`: its thresholds become
settings, its alerts get episodes, hysteresis and a cool-down of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from klmonitor.report import ExtremeToken
from klmonitor.rules.track import Reading

WARN = 1
CRITICAL = 2

Thresholds = Mapping[str, float]


@dataclass(frozen=True)
class Finding:
    """What one rule sees at one step.

    Attributes:
        message: one line: what happened, with numbers and units, without the pair's name.
        level: 0 if it would not open an alert but is not calm either (hysteresis), 1 for a
            warning, 2 for worse. A higher level than the open episode's is announced again.
        severity: ``"info"``, ``"warn"`` or ``"critical"``.
        believe: which estimator to believe, from a user's own rule; else the verdict says it.
        values: the numbers behind the message.
        aside: the message where another finding of the same story tells it; empty: the message.
        base: the k3 that this step's is compared with, nats; nan if it is with none.
        tokens: the tokens to look at.
        pair: the pair, where the finding knows it and the rule does not (a user's own rule).
        action: what to do first, where it is not the rule's.
        means: what it usually means, likewise.
    """

    message: str = ""
    level: int = WARN
    severity: str = "warn"
    believe: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    aside: str = ""
    base: float = math.nan
    tokens: tuple[ExtremeToken, ...] = ()
    pair: str | None = None
    action: str = ""
    means: str = ""

    def critical_if(self, worse: bool) -> Finding:
        """The same finding, critical where that holds."""
        return replace(self, level=CRITICAL, severity="critical") if worse else self


SIMMERING = Finding(level=0)
"""Not bad enough to open an alert, not calm enough to end one."""


@dataclass(frozen=True)
class Rule:
    """One kind of alert.

    Attributes:
        thresholds: name -> default value; the unit is in the rule's own docstring.
        cooldown: steps after an opening in which the kind does not open again, unless at a higher
            level.
        calm_for: calm steps in a row that end an episode.
        means: what it usually means.
        action: what to do first.
        source: where the rule and its thresholds come from.
        judge: a reading and the thresholds -> a finding, or None if all is calm; None for a kind
            that is not found pair by pair in what a step measured.
        kind: its name in alerts and in settings; empty: the judge's.
        on: whether the presets switch it on.
        per_pair: its thresholds are named by pair instead.
        withholds: what a track does not learn from a step at which it finds something, or what it
            forgets (`klmonitor.rules.track`).
        joins_story: whether it tells of the level of KL: all that do at one step of a pair are one
            alert (`klmonitor.rules.story`).
        lasting: a state rather than an event: it joins a story and never prolongs one.
        explains: it knows why: its `means` and `action` are those of a story that it is part of.
        of_one: whether a single token is enough for a critical alert.
        of_excluded: its evidence is the tokens that every count leaves out.
        elsewhere: pair -> what it means and what to do first, where `means` and `action` are those
            of a KL to the reference.
    """

    thresholds: Thresholds
    means: str
    action: str
    source: str
    judge: Callable[[Reading, Thresholds], Finding | None] | None = None
    kind: str = ""
    cooldown: int = 50
    calm_for: int = 1
    on: bool = True
    per_pair: bool = False
    withholds: tuple[str, ...] = ()
    joins_story: bool = False
    lasting: bool = False
    explains: bool = False
    of_one: bool = False
    of_excluded: bool = False
    elsewhere: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.kind and self.judge is not None:
            object.__setattr__(self, "kind", self.judge.__name__)

    def words(self, pair: str, finding: Finding) -> tuple[str, str]:
        """What a finding on a pair usually means, and what to do first."""
        means, action = self.elsewhere.get(pair, (self.means, self.action))
        return finding.means or means, finding.action or action
