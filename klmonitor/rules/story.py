"""One event, one alert: what several rules find of one step is told once, and then continued.

Every kind has its episode (`klmonitor.rules.episode`). Kinds that tell of the level of KL
(`Rule.joins_story`) and have something to announce at the same step of the same pair are one alert:
the gravest finding tells it, the others add to it. As long as such a rule finds something, and for
three steps after, what comes is the same event: a continuation (phase ``"worse"``, since the step
at which it began), told where it is graver, where a kind joins that says something new, or where
k3 has doubled since it was last told and is twice the largest shortly before. A small spike hides
no larger one: where k3 is larger than what was told, neither story nor cool-down keeps a kind that
opens again from being told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from klmonitor.numbers.stored import fields_like
from klmonitor.record.rows import as_float, finite_or_none
from klmonitor.rules.episode import OPEN, WORSE
from klmonitor.rules.rule import Finding, Rule
from klmonitor.rules.window import Floats
from klmonitor.rules.words import nats, plain

SEVERITIES = ("info", "warn", "critical")

SAME = 3
"""Steps without a finding after which what comes is another event."""
RISING = 2.0
"""Times the k3 that was last told, and the largest shortly before, at which a rise is told again:
what swings, as old_policy does over the epochs of a batch, rises anew in every swing."""
SWINGS = 2.0
"""Times what k3 was compared with that the largest before was, where it is to be said beside it."""
LOOK_BACK = 20
"""Steps before an event whose largest k3 is that."""
NOTHING: Floats = np.empty(0)


class Found(NamedTuple):
    """What a rule finds at a step.

    Attributes:
        rule: the rule.
        finding: at level 1 or above.
        phase: ``"open"`` or ``"worse"`` where its episode opens or gets worse, else None.
        since: the step at which its episode opened.
    """

    rule: Rule
    finding: Finding
    phase: str | None
    since: int

    @property
    def compares(self) -> bool:
        """Whether it compares k3 with what it was."""
        return not math.isnan(self.finding.base)


@dataclass(frozen=True)
class Telling:
    """What is to be told of a step.

    Attributes:
        parts: the one that tells it first.
        message: all of it in one line.
        continues: the step at which the event began, None if it begins here.
    """

    parts: tuple[Found, ...]
    message: str
    continues: int | None = None

    @property
    def severity(self) -> str:
        """The gravest of its parts'."""
        return self.parts[0].finding.severity


@dataclass
class Story:
    """The event of one pair that is being told, if any.

    Attributes:
        since: the step at which it began.
        quiet: steps since a rule last found something of it.
        gravity: the highest severity told, 0 to 2.
        told: the largest k3 told, nats.
        base: the k3 that the first alert compared with, nats; nan if with none.
        largest: the largest k3 shortly before it began, nats; 0: unknown.
        kinds: kinds told so far.
    """

    since: int = 0
    quiet: int = SAME + 1
    gravity: int = 0
    told: float = 0.0
    base: float = math.nan
    largest: float = 0.0
    kinds: list[str] = field(default_factory=list)

    def take(
        self, step: int, k3: float, found: Sequence[Found], seen: Floats = NOTHING
    ) -> Telling | None:
        """Take what the rules of the story find at a step, and say what is to be told.

        Args:
            step: its number.
            k3: nats per token.
            found: at level 1 or above, in the order of the table.
            seen: log k3 of earlier steps.
        """
        self.quiet += 1
        if self.quiet <= SAME:
            telling = self._continuation(k3, found)
        else:
            telling = beginning(found)
            if telling is not None:
                self._begin(step, telling, seen[-LOOK_BACK:])
        if telling is not None:
            self._remember(k3, telling)
        if telling is not None or any(not one.rule.lasting for one in found):
            self.quiet = 0
        return telling

    def _begin(self, step: int, telling: Telling, seen: Floats) -> None:
        bases = [one.finding.base for one in telling.parts if one.compares]
        self.since = step if telling.continues is None else telling.continues
        self.gravity, self.told, self.kinds = 0, 0.0, []
        self.base = bases[0] if bases else math.nan
        self.largest = math.exp(float(seen.max())) if seen.size else 0.0

    def _remember(self, k3: float, telling: Telling) -> None:
        kinds = [one.rule.kind for one in telling.parts]
        self.kinds += [kind for kind in kinds if kind not in self.kinds]
        self.gravity = max(self.gravity, *(gravity(one.finding) for one in telling.parts))
        self.told = max(self.told, k3) if k3 < math.inf else self.told

    def _continuation(self, k3: float, found: Sequence[Found]) -> Telling | None:
        new = [one for one in found if one.phase and self._is_new(one, k3)]
        risen = [one for one in found if one.compares]
        if risen and k3 >= RISING * max(self.told, self.largest):
            parts = gravest_first([*new, *(one for one in risen if one not in new)])
            said = [self._rising(k3), *(adds(one) for one in new)]
            return Telling(parts, "; ".join(said), self.since)
        return Telling(gravest_first(new), together(new), self.since) if new else None

    def _is_new(self, one: Found, k3: float) -> bool:
        graver = gravity(one.finding) > self.gravity
        if graver or one.rule.kind not in self.kinds:
            return True
        if one.compares:
            return k3 > self.told
        # a norm that is passed by more than was told, in an event that was critical for its size
        return one.phase == WORSE and one.finding.severity == SEVERITIES[-1]

    def _rising(self, k3: float) -> str:
        said = f"still rising: k3 is {nats(k3)} per token"
        if self.base > 0:
            said += f", {plain(k3 / self.base)}x the {nats(self.base)} before step {self.since}"
            if self.largest > SWINGS * self.base:
                said += f" and {plain(k3 / self.largest)}x the largest k3 shortly before it, "
                said += nats(self.largest)
        return said

    def state_dict(self) -> dict[str, Any]:
        """All fields."""
        return {**asdict(self), "base": finite_or_none(self.base)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Story:
        """Continue from what `state_dict` gave, or refuse it (ValueError)."""
        return cls(**fields_like(cls(), {**state, "base": as_float(state["base"])}))


def beginning(found: Sequence[Found]) -> Telling | None:
    """What findings tell where no event is being told yet; one that got worse has begun before."""
    announced = [one for one in found if one.phase]
    if not announced:
        return None
    parts = [one for one in found if one.phase or not one.rule.lasting]
    begun = None if any(one.phase == OPEN for one in announced) else announced[0].since
    return Telling(gravest_first(parts), together(parts), begun)


def alone(one: Found) -> Telling:
    """What a finding of no story tells."""
    return Telling((one,), one.finding.message, None if one.phase == OPEN else one.since)


def gravity(finding: Finding) -> int:
    """The rank of a severity."""
    return SEVERITIES.index(finding.severity)


def gravest_first(found: Sequence[Found]) -> tuple[Found, ...]:
    """Findings by severity, those of one severity in the order of the table."""
    return tuple(sorted(found, key=lambda one: -gravity(one.finding)))


def together(found: Sequence[Found]) -> str:
    """One line for all: the gravest tells it, the others add to it."""
    first, *others = gravest_first(found)
    return "; ".join([first.finding.message, *(adds(one) for one in others)])


def adds(one: Found) -> str:
    """What a finding adds to the message of another."""
    return one.finding.aside or one.finding.message
