"""One alert per event: an episode opens, may get worse, ends, and then cools down.

An episode belongs to one kind of alert of one pair, so no kind can use up another's allowance, and
a higher level is never held back: neither by the open episode of a lower one nor by its cool-down.
Nor is a larger number by the cool-down of a smaller one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from klmonitor.numbers.stored import fields_like

OPEN, WORSE, END = "open", "worse", "end"


@dataclass
class Episode:
    """The state of one kind of alert of one pair; steps are counted, not numbered.

    Attributes:
        active: between opening and end.
        since: step number at the opening.
        level: the highest level announced.
        calm: calm steps in a row.
        age: steps since the opening.
        size: the largest number of an announced step, 0 for a kind that has none.
    """

    active: bool = False
    since: int = 0
    level: int = 0
    calm: int = 0
    age: int = 0
    size: float = 0.0

    def advance(
        self, step: int, level: int | None, cooldown: float, calm_for: int, size: float = 0.0
    ) -> str | None:
        """Take one step's level (None: calm; 0: neither) and say what to announce, if anything.

        Args:
            step: its number.
            level: how bad it is.
            cooldown: steps after an opening in which it opens only at a higher level or size.
            calm_for: calm steps that end it.
            size: what is large if it is bad, 0 if nothing is.
        """
        self.age += 1
        if not self.active:
            return self._open(step, level or 0, cooldown, size)
        self.calm = 0 if level is not None else self.calm + 1
        if level is not None and level > self.level:
            self.level, self.size = level, max(self.size, size)
            return WORSE
        if self.calm >= calm_for:
            self.active = False
            return END
        return None

    def _open(self, step: int, level: int, cooldown: float, size: float) -> str | None:
        cooling = self.since_known and self.age < cooldown
        if not level or (cooling and level <= self.level and size <= self.size):
            return None
        self.active, self.since, self.level, self.calm, self.age = True, step, level, 0, 0
        self.size = size
        return OPEN

    @property
    def since_known(self) -> bool:
        """Whether it has ever opened."""
        return self.level > 0

    def state_dict(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Episode:
        """Continue from what `state_dict` gave, or refuse it (ValueError)."""
        return cls(**fields_like(cls(), state))
