"""No data: a pair that used to have tokens has had none for a while, or no pair ever had any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from klmonitor.numbers.stored import fields_like
from klmonitor.rules.rule import SIMMERING, WARN, Finding, Rule, Thresholds
from klmonitor.rules.words import count

STEADY = 20
"""Steps with data from which a run is one that has some at every step, or after pauses as known."""


@dataclass
class Silence:
    """Steps without data, of one pair or of the run.

    Attributes:
        steps: since the last data, or since the start.
        longest: the longest silence that ended: some pairs have data only every so many steps.
        seen: steps with data.
    """

    steps: int = 0
    longest: int = 0
    seen: int = 0

    def advance(self, has_data: bool) -> None:
        """Count one step."""
        if has_data:
            self.longest = max(self.longest, self.steps)
            self.steps = 0
            self.seen += 1
        else:
            self.steps += 1

    def find(self, limits: Thresholds) -> Finding | None:
        """A finding once the silence of a pair is long.

        Thresholds: `steps` without data, and `gaps`, multiples of the longest silence so far.
        """
        return self._longer_than(max(limits["steps"], limits["gaps"] * self.longest))

    def find_of_run(self, limits: Thresholds) -> Finding | None:
        """The same of the run, in which no pair has data: sooner where that was never so before.

        A pair may be evaluated less often from some step on, while a run that trains has tokens.
        Threshold: `soon`, steps beyond `gaps` multiples of the longest silence so far.
        """
        pauses = limits["gaps"] * self.longest
        if self.seen < STEADY or limits["soon"] + pauses >= max(limits["steps"], pauses):
            return self.find(limits)
        found = self._longer_than(limits["soon"] + pauses)
        if found is None or not found.level:
            return found
        pause = count(self.longest, "step")
        usual = f"its longest pause was {pause}" if self.longest else "every step before had some"
        return replace(
            found,
            message=f"{found.message}, of any pair; {usual}",
            means="a filter or a mask lets nothing through, or a hook was lost",
            action="look at the completions and the mask of these steps: nothing is learned there",
        )

    def _longer_than(self, most: float) -> Finding | None:
        if not self.steps:
            return None
        if self.steps < most:
            return SIMMERING
        return Finding(
            level=WARN,
            message=f"no tokens for {self.steps} steps",
            values={"steps": float(self.steps)},
        )

    def state_dict(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Silence:
        """Continue from what `state_dict` gave, or refuse it (ValueError)."""
        return cls(**fields_like(cls(), state))


NO_DATA = Rule(
    kind="no_data",
    thresholds={"steps": 50, "gaps": 3, "soon": 5},
    means=("a hook was lost, the reference is no longer evaluated, or every token is masked"),
    action="see what `attach` said it bound, and whether both log-probs of the pair still exist",
    source="docs/alerts.md#no-data",
    cooldown=0,
)
