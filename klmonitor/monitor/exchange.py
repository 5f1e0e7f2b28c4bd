"""A step's collectives: every rank takes part in them, whatever fails on it before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from klmonitor.boundary import Boundary, HealthLog
from klmonitor.monitor.flags import N_FLAGS, Flags
from klmonitor.summary.intake import Intake
from klmonitor.summary.reduce import DisagreementError, Ranks, Reducer
from klmonitor.summary.state import Summary


@dataclass(frozen=True)
class Pending:
    """A step whose numbers are known, but not judged.

    Attributes:
        step: its number.
        phase: which observations were closed.
        summary: of all ranks.
        flags: of all ranks.
        absent: whether a rank had no summary.
        why: why numbers are missing here; empty: none are, as far as this process knows.
    """

    step: int
    phase: str
    summary: Summary
    flags: Flags
    absent: bool
    why: str


class Exchange:
    """Brings the sums of all ranks together, once a step.

    Args:
        intake: holds this process's sums.
        ranks: over whom is reduced; None: nobody else.
        boundary: what catches a failure here, for which others must not wait.
        log: where it is told that ranks have refused one another's settings.
    """

    def __init__(
        self,
        intake: Intake,
        ranks: Callable[[], Ranks | None],
        boundary: Boundary,
        log: HealthLog,
    ) -> None:
        self._intake, self._ranks, self._boundary, self._log = intake, ranks, boundary, log
        self._reducer: Reducer | None = None

    @property
    def off(self) -> bool:
        """Whether ranks have refused one another's settings: then none reduces any more."""
        return self._reducer is not None and bool(self._reducer.off)

    def start(
        self, step: int, phase: str, flags: Callable[[], tuple[Flags, str]]
    ) -> Pending | None:
        """Reduce what was observed; None: it failed here, and the others had our part of it.

        Args:
            step: its number.
            phase: which observations to close.
            flags: gives this rank's, and why it misses numbers.
        """
        if self._reducer is not None:
            self._reducer.begin()
        pending = self._boundary(self._reduced, step, phase, flags)
        if pending is None:
            self._intake.drop(phase)
            self._boundary(self._attend)
        return pending

    def _reduced(self, step: int, phase: str, flags: Callable[[], tuple[Flags, str]]) -> Pending:
        """Whatever fails before the collectives travels as a flag."""
        reducer = self._ready()
        if reducer.alone:
            mine, why = flags()
            return Pending(step, phase, self._intake.take(phase), mine.own(), False, why)
        with self._agreeing():
            reducer.agree(self._intake.digest)
        why = ""

        def make() -> tuple[Summary, Sequence[float]]:
            nonlocal why
            mine, why = flags()
            encoded = mine.encode()
            return self._intake.take(phase), encoded

        summary, (*numbers, absent), failure = reducer.reduce(make)
        if failure is not None:
            self._intake.drop(phase)
            self._boundary.caught(failure)
        return Pending(step, phase, summary, Flags.decode(numbers), absent > 0, why)

    def _attend(self) -> None:
        """A step has failed here: take part in its collectives all the same, for others wait."""
        reducer = self._ready()
        with self._agreeing():
            reducer.attend()

    def _ready(self) -> Reducer:
        if self._reducer is None:
            self._reducer = Reducer(self._intake.config, self._ranks(), N_FLAGS)
        return self._reducer

    @contextmanager
    def _agreeing(self) -> Iterator[None]:
        try:
            yield
        except DisagreementError as error:  # on every rank alike
            self._log.stop("monitoring", str(error))
            raise
