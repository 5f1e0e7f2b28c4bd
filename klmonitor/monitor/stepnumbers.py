"""From a step's sums to its numbers, with what is remembered between steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from klmonitor.numbers.assemble import ExtraValues, pair_reports
from klmonitor.numbers.causes import Causes
from klmonitor.numbers.cliprange import ClipRange
from klmonitor.numbers.running import Running
from klmonitor.numbers.sums import sums_of
from klmonitor.penalty import Penalty
from klmonitor.record.runfile import NOTES_OF_PAIRS, PENALTY, TERMS
from klmonitor.report import PairReport
from klmonitor.summary.state import Summary


class StepNumbers:
    """Numbers of each step's pairs; settings as `Monitor` has them.

    Attributes:
        running: the running means and variances.
        workers: names of those whose parts came here, in the order in which they came.
    """

    def __init__(
        self,
        half_life: float,
        extra_values: ExtraValues | None,
        clip_range: Sequence[float] | None,
        penalties: Mapping[str, Penalty],
        notes: Mapping[str, str] | None,
    ) -> None:
        self.running = Running(half_life)
        self.workers: list[str] = []
        self._causes = Causes()
        self._extra_values = (
            extra_values if clip_range is None else ClipRange(clip_range, extra_values)
        )
        self._penalties, self._notes = penalties, dict(notes or {})

    def settings(self) -> dict[str, Any]:
        """What the record says of the pairs before any step."""
        terms = self._penalties
        found: dict[str, Any] = {NOTES_OF_PAIRS: self._notes} if self._notes else {}
        if terms:
            found[PENALTY] = {pair: str(term) for pair, term in terms.items()}
            found[TERMS] = {pair: asdict(term) for pair, term in terms.items()}
        return found

    def of(self, summary: Summary, phase: str, *, advance: bool) -> dict[str, PairReport]:
        """The pairs of a step.

        Args:
            summary: its sums, on the host.
            phase: ``"train"`` or another, which running numbers know nothing of.
            advance: whether the step is a new one, and not some that were counted already.
        """
        steps = sums_of(summary.arrays, summary.config.all_groups)
        if advance:
            self.running.advance(steps)
        elif phase == "train":  # running numbers are training's
            self.running.read(steps)
        found = pair_reports(steps, self._extra_values, self.workers, self._penalties)
        for name in self._notes.keys() & found.keys():
            found[name] = found[name].changed(note=self._notes[name])
        return self._causes.name(steps, found, advance=advance)
