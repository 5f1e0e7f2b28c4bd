"""Which workers have sent their sums of a step: who is missing is counted, and named once."""

from __future__ import annotations

from collections.abc import Sequence

from klmonitor.boundary import HealthLog
from klmonitor.hooks.mailbox import Letter

FEW = 3
"""Workers that are named one by one."""


class Roll:
    """The workers that are expected, by what they say themselves.

    Attributes:
        known: names of all that were ever heard of.
    """

    def __init__(self, log: HealthLog) -> None:
        """Nobody heard of; `log` counts what is missing."""
        self.known: set[str] = set()
        self._log = log
        self._workers = 0
        self._missing: frozenset[str] = frozenset()

    def call(self, letters: Sequence[Letter], lost: int, step: int) -> list[str]:
        """Take note of a step's letters; what there is to say of them, a line an item.

        A step in which nobody sent anything is none of an update (a critic's warm-up).
        """
        lines = []
        if lost:
            self._log.lost(lost)
            lines.append(f"{lost} parts were thrown away: the driver had not come for them")
        if not letters:
            return lines
        present = {letter.worker for letter in letters}
        self.known |= present
        self._workers = letters[-1].workers
        expected = {f"actor-{rank}" for rank in range(self._workers)}
        missing = frozenset(expected - present)
        self._log.lost(len(missing))
        if missing - self._missing:
            lines.append(f"step {step} lacks {_named(missing)}: what they summed of it is lost")
        if self._missing - missing:
            lines.append(f"step {step}: {_named(self._missing - missing)} sent again")
        self._missing = missing
        return lines


def _named(workers: frozenset[str]) -> str:
    names = sorted(workers, key=lambda name: (len(name), name))
    more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
    return ", ".join(names[:FEW]) + more
