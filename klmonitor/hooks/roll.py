"""Which workers have sent their sums of a step: who is missing is counted, and named once."""

from __future__ import annotations

from collections.abc import Sequence

from klmonitor.boundary import HealthLog
from klmonitor.hooks.mailbox import Letter

FEW = 3
"""Workers that are named one by one."""
SILENT = "workers"
"""What is missing as long as no worker has sent anything."""


class Roll:
    """The workers that are expected, by what they say themselves.

    Attributes:
        known: names of all that were ever heard of.
    """

    def __init__(self, log: HealthLog, begins: int = 0) -> None:
        """Nobody heard of.

        Args:
            log: counts what is missing.
            begins: the last step without an update of the policy (a critic's warm-up).
        """
        self.known: set[str] = set()
        self._log, self._begins, self._told = log, begins, False
        self._workers = 0
        self._missing: frozenset[str] = frozenset()

    def call(self, letters: Sequence[Letter], lost: int, step: int) -> list[str]:
        """Take note of a step's letters; what there is to say of them, a line an item."""
        lines = []
        if lost:
            self._log.lost(lost)
            lines.append(f"{lost} parts were thrown away: the driver had not come for them")
        present = {letter.worker for letter in letters}
        self.known |= present
        if not self.known:
            return [*lines, *self._silence(step)]
        self._log.resume(SILENT)
        if letters:
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

    def _silence(self, step: int) -> list[str]:
        """Nobody was ever heard of: from the first update on that is said, once."""
        if step <= self._begins:
            return []
        self._log.stop(SILENT, "none has sent anything")
        if self._told:
            return []
        self._told = True
        return [
            f"step {step}: no worker has sent anything, so old_policy and policy_ref are missing; "
            "is klmonitor installed where the workers run?"
        ]


def _named(workers: frozenset[str]) -> str:
    names = sorted(workers, key=lambda name: (len(name), name))
    more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
    return ", ".join(names[:FEW]) + more
