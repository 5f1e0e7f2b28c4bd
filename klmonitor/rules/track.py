"""What is remembered of one pair from step to step, and what one step looks like against it.

Everything here survives a checkpoint (`state_dict`) and has a fixed size: a step costs the same
after a million steps as after a hundred.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

from klmonitor.numbers.student import normal_deviate
from klmonitor.report import PairReport
from klmonitor.rules.flat import FlatLevel, FlatScore
from klmonitor.rules.trend import Score, TrendLevel
from klmonitor.rules.window import Floats, Window

K3_LEVEL, K1_LEVEL, OUTLIER_LEVEL = "level of k3", "level of k1", "level of outliers"
HABIT_K1, HABIT_K3 = "habit of k1", "habit of k3"
"""What a track learns from a step, unless a rule that finds something there withholds it."""
LARGE = 1e150
"""Nats beyond which a number is no better than an infinity: its square is none of float64's."""
LARGEST_RELATIVE_ERROR = 1e3
"""A standard error beyond this many times its mean says no more than that."""
ACCEPTED = 450
"""Accepted steps of log k3, what drift looks back on."""
SEEN = 100
"""Steps of log k3 as they were, what runaway looks back on."""
SIGNED = 50
"""Steps of k1 whose sign is judged together."""
HABIT = 100
"""Steps of |J| of dominance whose largest is the run's habit."""
HABIT_GROWTH, HABIT_START = 2.0, 4.0
"""A flagged |J| enters the habit at most as twice the habit so far (at least 4): a run that turns
heavy-tailed is told once or twice, and a single huge token blinds nobody."""
GAPS = 5
"""Steps whose gap is judged together, the current one included: a sampler that is wrong is wrong
in every batch, while a single heavy-tailed batch has a wild gap and a standard error too small."""
CLUSTERING = 5.0
"""Tokens per effectively independent token, for the error of a count."""


def finite(value: float) -> float:
    """The value, or nan if it is infinite, or as good as (`LARGE`)."""
    return value if abs(value) < LARGE else math.nan


def has_data(pair: PairReport) -> bool:
    """Whether any token was seen, finite or not; an unknown number of tokens (nan) is some."""
    return pair["tokens"] != 0 or pair["nonfinite"] > 0


@dataclass(frozen=True)
class Reading:
    """One pair at one step, with what came before it.

    Attributes:
        pair: this step's numbers.
        score: log k3 against the trend-following level.
        k1: k1's mean against its flat level.
        outliers: square root of the share of outliers against its flat level.
        history: accepted log k3 of earlier steps, oldest first.
        seen: log k3 of earlier steps, also of those that were flagged.
        signs: earlier k1 means and their squared standard errors.
        gaps: k3 - k1 of earlier steps at which q drew the tokens, and squared standard errors.
        habits: estimator -> |J| of dominance in the last steps, this one not yet among them.
        steps: steps of this pair seen before this one.
    """

    pair: PairReport
    score: Score
    k1: FlatScore
    outliers: FlatScore
    history: Floats
    seen: Floats
    signs: tuple[Floats, Floats]
    gaps: tuple[Floats, Floats]
    habits: Mapping[str, Window]
    steps: int

    def __getitem__(self, metric: str) -> float:
        return self.pair[metric]

    def habit(self, estimator: str) -> float:
        """The largest |J| of dominance in the last steps, 0 at first."""
        return float(self.habits[estimator].last(HABIT).max(initial=0))


class Track:
    """The memory of one pair.

    Args:
        shift_z: median of five z at which the level of log k3 counts as shifted.
        rearm_z: and below which it no longer does.
    """

    def __init__(self, shift_z: float, rearm_z: float) -> None:
        self._trend = TrendLevel(shift_z, rearm_z)
        self._k1 = FlatLevel()
        self._outliers = FlatLevel()
        self._history = Window(ACCEPTED)
        self._seen = Window(SEEN)
        self._signs = (Window(SIGNED), Window(SIGNED))
        self._gaps = (Window(GAPS - 1), Window(GAPS - 1))
        self._habit = {name: Window(HABIT) for name in ("k1", "k3")}
        self._steps = 0

    def read(self, pair: PairReport) -> Reading:
        """One step against the past; changes nothing."""
        score = self._score(pair)
        share = finite(pair["outliers/rate"]) / 1e4
        root = math.sqrt(share) if share >= 0 else math.nan
        return Reading(
            pair=pair,
            score=score,
            k1=self._k1.score(finite(pair["k1/mean"]), finite(pair["k1/se"]), _explained(score)),
            outliers=self._outliers.score(root, _share_error(pair.tokens)),
            history=self._history.last(ACCEPTED),
            seen=self._seen.last(SEEN),
            signs=(self._signs[0].last(SIGNED), self._signs[1].last(SIGNED)),
            gaps=(self._gaps[0].last(GAPS), self._gaps[1].last(GAPS)),
            habits=self._habit,
            steps=self._steps,
        )

    def _score(self, pair: PairReport) -> Score:
        k3 = finite(pair["k3/mean"])
        if not k3 > 0:
            return Score()
        se = finite(pair["k3/se"]) / k3
        known = 0.0 if math.isnan(se) else min(abs(se), LARGEST_RELATIVE_ERROR)
        return self._trend.score(math.log(k3), known)

    def take(self, reading: Reading, withheld: Container[str]) -> None:
        """Learn from a step: what a rule withholds stays out, so does what is not a number."""
        self._steps += 1
        self._k1.take(reading.k1, K1_LEVEL in withheld)
        self._outliers.take(reading.outliers, OUTLIER_LEVEL in withheld)
        gap, error = finite(reading["gap"]), gap_error(reading.pair)
        if reading["on_policy"] == 1 and not math.isnan(error):
            self._gaps[0].append(gap)
            self._gaps[1].append(error**2)
        for name, habit in (("k1", HABIT_K1), ("k3", HABIT_K3)):
            window = self._habit[name]
            j = abs(finite(reading[f"dominance/{name}/j"]))
            if habit in withheld:
                j = min(j, HABIT_GROWTH * max(reading.habit(name), HABIT_START))
            if not math.isnan(j):
                window.append(j)
        if not math.isnan(reading.k1.value):
            self._signs[0].append(reading.k1.value)
            self._signs[1].append(reading.k1.se**2)
        if math.isnan(reading.score.y):
            self._trend.skip()
            return
        self._seen.append(reading.score.y)
        accepted = self._trend.take(reading.score, K3_LEVEL in withheld)
        if accepted.moved:
            self._history.shift(accepted.moved)
        for y in accepted.values:
            self._history.append(y)

    def state_dict(self) -> dict[str, Any]:
        """Everything remembered, as numbers and lists."""
        return {
            "trend": self._trend.state_dict(),
            "k1": self._k1.state_dict(),
            "outliers": self._outliers.state_dict(),
            "history": self._history.tolist(),
            "seen": self._seen.tolist(),
            "signs": [window.tolist() for window in self._signs],
            "gaps": [window.tolist() for window in self._gaps],
            "habit": {name: window.tolist() for name, window in self._habit.items()},
            "steps": self._steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self._trend.load_state_dict(state["trend"])
        self._k1.load_state_dict(state["k1"])
        self._outliers.load_state_dict(state["outliers"])
        self._history = Window(ACCEPTED, state["history"])
        self._seen = Window(SEEN, state["seen"])
        first, second = state["signs"]
        self._signs = (Window(SIGNED, first), Window(SIGNED, second))
        first, second = state["gaps"]
        self._gaps = (Window(GAPS - 1, first), Window(GAPS - 1, second))
        self._habit = {name: Window(HABIT, j) for name, j in state["habit"].items()}
        self._steps = state["steps"]


def gap_error(pair: PairReport) -> float:
    """Standard error of the gap; 0 where k1 and k3 are equal, nan where it is unknown.

    By sequence, since the gap's expectation is 0 for every prompt alone; as wide as the t of that
    many sequences is wider than a normal deviate.
    """
    gap, z = finite(pair["gap"]), finite(pair["gap_z"])
    if (error := finite(pair["gap_se"])) > 0:
        z = float(normal_deviate(gap / error, pair["sequences"] - 1))
    if gap == 0:
        return 0.0
    return finite(gap / z) if z else math.nan


def _explained(score: Score) -> float:
    """How far k3 is from its level, nats: k1 estimates the same KL and may move as far."""
    if math.isnan(score.level):
        return 0.0
    return math.exp(score.y) - math.exp(score.level)


def _share_error(tokens: float) -> float:
    """Standard error of the square root of a share of N tokens, 1 / (2 sqrt N), clustered."""
    return finite(math.sqrt(CLUSTERING / (4 * tokens))) if tokens > 0 else math.nan
