"""The level that log k3 is expected at, how far it scatters, and whether the level has moved.

Everything is a median of what was seen last, of all of it: a step that was flagged is learned like
any other, since a median of nine is not moved by one. So no run can make its rules deaf, a level
that has moved is the new level after five steps, and the state of a run is its last values.

With y = log k3, of the steps that had one,

    m_t     = median of y over the nine steps before t
    r_t     = y_t - m_t
    level_t = m_t + median of r over the last H steps
    spread  = that of r over the last H steps; while H grows, of y_t - y_(t-1) where it is smaller
    scale^2 = max(spread^2 - median(se^2), 0.03^2) (1 + 3 / n)^2 + se_t^2
    z       = (y - level) / scale

H is half of the steps so far, from 20 to 100, so that the start-up is forgotten as soon as it is
over; n is how many r these are, since a spread of few is itself uncertain. The median of r is the
trend of a step, up or down: a falling series is followed like a rising one. On a start-up the r
are large long after the ramp has ended (m lags by five steps), the changes from step to step are
not, and of noise with an autocorrelation up to 1/2 they are no smaller than the noise. A spread is
the larger of 1.4826 MAD and the third largest value over 1.9: where tails are heavy the second is.

How far a heavy tail reaches a hundred values do not tell. Of 150 r and more, the last 0.8 of the
run's and at most 400, a value is estimated that one step in a thousand exceeds at most (Weissman's
estimator: the furthest tenth on either side, extended by Hill's index less its standard error), and
no smaller rise has a z of 4.4.

Whether the level has moved is asked of medians of seven, against their own past:

    D_t = median of y over the last seven steps - median over the 25 before them
    z_moved = (D - median D) / (max(1.4826 MAD(D), scale / 2) (1 + 10 / n))

over the last 0.8 of the run's D, from 40 to 150, without the latest seven. How far medians of
seven stray is so measured, autocorrelation and slow wander included, and not derived. `scale` is
here that of MADs alone: the first three values of a new level are the largest of all, and would
hide the move that they begin; a median of seven is not moved by a tail.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from klmonitor.numbers.stored import count_of
from klmonitor.rules.rounding import beyond_rounding
from klmonitor.rules.window import Floats, Window, far_quantile, located, median, middle, robust_sd

NEAR = 9
"""Steps before this one whose median is the level."""
LEAST_NEAR = 5
"""And how few of them will do."""
WARM_UP = 10
"""r that a score needs: the first is that of the 16th value."""
SHARE, SHORTEST, LONGEST = 0.5, 20, 100
"""H, as a share of the steps so far and its limits."""
UNCERTAIN = 3.0
"""A spread of n values is widened by 1 + 3 / n."""
FLOOR = 0.03
"""The smallest spread of log k3 between steps that is believed."""
NOW, BEFORE, LEAST_BEFORE = 7, 25, 15
"""Steps whose median is the level now, and steps before these whose median is that before."""
MOVES_SHARE, MOVES_LEAST, MOVES = 0.8, 40, 150
"""D that the scale of D is taken from."""
MOVES_UNCERTAIN = 10.0
"""D overlap, so that n of them are few: their scale is widened by 1 + 10 / n."""
TAIL_LEAST, TAIL = 150, 400
"""r that the tail is estimated from."""
TAIL_Z = 4.4
"""z of a rise that the tail exceeds once in a thousand steps."""
SCALES = 0.5
"""A median of seven strays by half the scale of a step at least."""


class Score(NamedTuple):
    """Where one step stands against its level; nan where there is no level yet.

    Attributes:
        y: log k3; nan if k3 is not positive and finite.
        se: standard error of y (that of k3 / k3), 0 if unknown.
        near: median of the nine steps before.
        level: expected y.
        scale: expected spread of y, this step's own error included.
        z: (y - level) / scale, without what rounding may have added.
        now: median of the last seven y, this one included.
        before: median of the 25 before them.
        z_moved: how far `now` - `before` is from what it usually is, in scales of it.
    """

    y: float = math.nan
    se: float = 0.0
    near: float = math.nan
    level: float = math.nan
    scale: float = math.nan
    z: float = math.nan
    now: float = math.nan
    before: float = math.nan
    z_moved: float = math.nan

    @property
    def ratio(self) -> float:
        """k3 as a multiple of its expected level."""
        return math.exp(min(self.y - self.level, 700.0))

    @property
    def risen(self) -> float:
        """k3 as a multiple of the larger of its level and what it was before that, if known.

        What fell for a few steps and comes back has not risen.
        """
        past = self.level if math.isnan(self.before) else max(self.level, self.before)
        return math.exp(min(self.y - past, 700.0))

    @property
    def moved(self) -> float:
        """The level now as a multiple of that before."""
        return math.exp(min(self.now - self.before, 700.0))


def widened(spread: float, error: float, se: float, values: int) -> float:
    """The scale of a step whose own standard error is `se`, from the spread of `values` others.

    Args:
        spread: of log k3 between steps.
        error: what of its square is the steps' own squared errors.
        se: standard error of this step's.
        values: how many steps the spread is of.
    """
    own = math.sqrt(max(spread**2 - error, FLOOR**2))
    return math.hypot(own * (1 + UNCERTAIN / values), se)


class Level:
    """The level of one pair's log k3."""

    def __init__(self) -> None:
        self._values = Window(NOW + BEFORE)
        self._errors = Window(LONGEST)
        self._misses = Window(TAIL)
        self._changes = Window(LONGEST)
        self._moves = Window(MOVES + NOW)
        self._steps = 0

    def score(self, y: float, se: float, unit: float = 0.0) -> Score:
        """Judge one finite value of log k3 against what came before it; changes nothing.

        Args:
            y: log k3.
            se: its standard error.
            unit: what k3 is rounded to, nats.
        """
        before = self._values.last(NEAR)
        if before.size < LEAST_NEAR:
            return Score(y, se)
        near = middle(sorted(before.tolist()))
        length = int(min(max(SHARE * self._steps, SHORTEST), LONGEST))
        misses = self._misses.last(length)
        if misses.size < WARM_UP:
            return Score(y, se, near)
        trend, usual, spread = located(misses)
        if length < LONGEST:
            _, *others = located(self._changes.last(length))
            usual, spread = map(min, (usual, spread), others)
        error = median(self._errors.last(length))
        scale = widened(spread, error, se, misses.size)
        moved = self._move(y, widened(usual, error, se, misses.size), unit)
        scale, level = max(scale, self._tail() / TAIL_Z), near + trend
        z = beyond_rounding(y - level, math.exp(y), unit) / scale
        return Score(y, se, near, level, scale, z, *moved)

    def _tail(self) -> float:
        """What r exceeds once in a thousand steps; 0 while too few are known."""
        misses = self._misses.last(int(min(MOVES_SHARE * self._steps, TAIL)))
        return far_quantile(misses, median(misses)) if misses.size >= TAIL_LEAST else 0.0

    def _move(self, y: float, scale: float, unit: float) -> tuple[float, float, float]:
        """`now`, `before` and `z_moved` of a score."""
        before = self._values.last(BEFORE, skip=NOW - 1)
        if before.size < LEAST_BEFORE:
            return math.nan, math.nan, math.nan
        now = middle(sorted([*self._values.last(NOW - 1).tolist(), y]))
        past = median(before)
        length = int(min(max(MOVES_SHARE * self._steps, MOVES_LEAST), MOVES))
        moves = self._moves.last(length, skip=NOW)
        if moves.size < MOVES_LEAST:
            return now, past, math.nan
        usual = median(moves)
        of_moves = max(robust_sd(moves, usual), SCALES * scale)
        rise = beyond_rounding(now - past, math.exp(now), unit) - usual
        return now, past, rise / (of_moves * (1 + MOVES_UNCERTAIN / moves.size))

    def take(self, score: Score) -> None:
        """Learn a step that has been judged."""
        if math.isnan(score.y):
            return
        if len(self._values):
            self._changes.append(score.y - float(self._values.last(1)[0]))
        if math.isfinite(score.near):
            self._misses.append(score.y - score.near)
        if math.isfinite(score.now):
            self._moves.append(score.now - score.before)
        self._values.append(score.y)
        self._errors.append(score.se**2)
        self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Everything remembered, as numbers and lists."""
        return {
            "values": self._values.tolist(),
            "errors": self._errors.tolist(),
            "misses": self._misses.tolist(),
            "changes": self._changes.tolist(),
            "moves": self._moves.tolist(),
            "steps": self._steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self._values = Window(NOW + BEFORE, state["values"])
        self._errors = Window(LONGEST, state["errors"])
        self._misses = Window(TAIL, state["misses"])
        self._changes = Window(LONGEST, state["changes"])
        self._moves = Window(MOVES + NOW, state["moves"])
        self._steps = count_of(state["steps"], "steps of a level")

    def relive(self, values: Floats) -> None:
        """Learn values of log k3 whose errors are no longer known."""
        for y in values.tolist():
            self.take(self.score(y, 0.0))
