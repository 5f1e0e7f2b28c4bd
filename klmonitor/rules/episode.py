"""One alert per event: an episode opens, may get worse, ends, and then cools down.

An episode belongs to one kind of alert of one pair, so no kind can use up another's allowance, and
a higher level is never held back: neither by the open episode of a lower one nor by its cool-down.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

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
    """

    active: bool = False
    since: int = 0
    level: int = 0
    calm: int = 0
    age: int = 0

    def advance(self, step: int, level: int | None, cooldown: float, calm_for: int) -> str | None:
        """Take one step's level (None: calm; 0: neither) and say what to announce, if anything."""
        self.age += 1
        if not self.active:
            return self._open(step, level or 0, cooldown)
        self.calm = 0 if level is not None else self.calm + 1
        if level is not None and level > self.level:
            self.level = level
            return WORSE
        if self.calm >= calm_for:
            self.active = False
            return END
        return None

    def _open(self, step: int, level: int, cooldown: float) -> str | None:
        if not level or (self.since_known and self.age < cooldown and level <= self.level):
            return None
        self.active, self.since, self.level, self.calm, self.age = True, step, level, 0, 0
        return OPEN

    @property
    def since_known(self) -> bool:
        """Whether it has ever opened."""
        return self.level > 0

    def state_dict(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)
