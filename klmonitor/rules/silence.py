"""No data: a pair that used to have tokens has had none for a while, or no pair ever had any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from klmonitor.numbers.stored import fields_like
from klmonitor.rules.rule import SIMMERING, WARN, Finding, Rule, Thresholds


@dataclass
class Silence:
    """Steps without data, of one pair or of the run.

    Attributes:
        steps: since the last data, or since the start.
        longest: the longest silence that ended: some pairs have data only every so many steps.
    """

    steps: int = 0
    longest: int = 0

    def advance(self, has_data: bool) -> None:
        """Count one step."""
        if has_data:
            self.longest = max(self.longest, self.steps)
            self.steps = 0
        else:
            self.steps += 1

    def find(self, limits: Thresholds) -> Finding | None:
        """A finding once the silence is long.

        Thresholds: `steps` without data, and `gaps`, multiples of the longest silence so far.
        """
        if not self.steps:
            return None
        if self.steps < max(limits["steps"], limits["gaps"] * self.longest):
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
    thresholds={"steps": 50, "gaps": 3},
    means=("a hook was lost, the reference is no longer evaluated, or every token is masked"),
    action="see what `attach` said it bound, and whether both log-probs of the pair still exist",
    source="docs/alerts.md#no-data",
    cooldown=0,
)
