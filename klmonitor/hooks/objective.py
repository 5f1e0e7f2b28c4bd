"""What a trainer's own objective does with the ratios: the penalty it pays, the range it clips.

Trainers log the clamped side of both: a ratio beyond the range counts as clipped only if the
advantage has the right sign, and a jump of the penalty shows in the loss alone. Here are the raw
numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from klmonitor.numbers.buckets import Array
from klmonitor.numbers.cliprange import BOUNDED, beyond
from klmonitor.numbers.cliprange import Range as Range
from klmonitor.penalty import Penalty


@dataclass(frozen=True)
class PenaltyRead:
    """The KL term that a trainer's options tell of.

    Attributes:
        penalties: pair -> the term on it; empty where there is none, or where it is not known.
        why: of a term, what its receipt leaves out; else why there is none. May be empty.
    """

    penalties: Mapping[str, Penalty] = field(default_factory=dict)
    why: str = ""

    def lines(self) -> list[str]:
        """What `describe()` says of it."""
        found = [f"  penalty {pair}: {term}" for pair, term in self.penalties.items()]
        if not found:
            return [f"  penalty not read: {self.why}"] if self.why else []
        return [*found, *([f"          {self.why}"] if self.why else [])]


@dataclass(frozen=True)
class Objective:
    """The parts of a trainer's objective that a pair's sums can tell something about.

    Attributes:
        beta: weight of the KL penalty, 0 for none.
        penalised: pair -> the estimator that is penalised with, ``"k1"`` or ``"k3"``.
        ranges: pair -> the range that its importance ratios are clipped or masked to.
        bounded: whether no ratio policy / old enters the loss beyond a bound, whatever the sign of
            the advantage.
    """

    beta: float = 0.0
    penalised: Mapping[str, str] = field(default_factory=dict)
    ranges: Mapping[str, Range] = field(default_factory=dict)
    bounded: bool = False

    def values(self, pair: str, values: Mapping[str, float], histogram: Array) -> dict[str, float]:
        """``penalty/*`` and ``clip/*`` of a pair, those that apply to it.

        Args:
            pair: its name.
            values: its metrics by name.
            histogram: [HISTOGRAM] counts of d.
        """
        found = {}
        if self.beta and pair in self.penalised:
            estimator = self.penalised[pair]
            found["penalty/mean"] = self.beta * values[f"{estimator}/mean"]
            found["penalty/se"] = abs(self.beta) * values[f"{estimator}/se"]
        if pair in self.ranges and values["tokens"]:
            found |= beyond(self.ranges[pair], values["tokens"], histogram)
        if self.bounded and pair == "old_policy":
            found |= BOUNDED
        return found
