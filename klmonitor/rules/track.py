"""What is remembered of one pair from step to step, and what one step looks like against it.

Everything here survives a checkpoint (`state_dict`) and has a fixed size: a step costs the same
after a million steps as after a hundred. Steps are those at which the pair had data: a pair that is
seen in every tenth batch has its baseline in its own time.

What is known of the run (`klmonitor.numbers.runvalues`) is read where a report has it.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from klmonitor.numbers.stored import count_of, numbers_of
from klmonitor.numbers.student import deviate_of_t, t_of_deviate
from klmonitor.numbers.sums import NEARLY_ALL
from klmonitor.numbers.verdicts import UNKNOWN_SAMPLER
from klmonitor.record.rows import as_float, finite_or_none
from klmonitor.report import PairReport
from klmonitor.rules.flat import LENGTH, SKIP, FlatLevel, FlatScore
from klmonitor.rules.level import NOW, Level, Score
from klmonitor.rules.rounding import decimals, unit
from klmonitor.rules.window import Floats, Window, median
from klmonitor.summary.once import once

HABIT_K1, HABIT_K3 = "habit of k1", "habit of k3"
"""What a track learns from a step, unless a rule that finds something there withholds it."""
PAST = "past"
"""What a rule withholds that has told a new level: nothing is compared with the time before it."""
JUMP = "jump"
"""What a rule withholds that has told a jump: `PAST`, if the level stays high for seven steps."""
START = "start"
"""What a rule withholds that has told a new start: all of log k3 is forgotten."""
LARGE = 1e150
"""Nats beyond which a number is no better than an infinity: its square is none of float64's."""
LARGEST_RELATIVE_ERROR = 1e3
"""A standard error beyond this many times its mean says no more than that."""
HISTORY = 400
"""Steps of log k3 that drift looks back on."""
SEEN = 100
"""Steps of log k3 that runaway and surge look back on, and whose digits tell the rounding."""
LATEST = 40
"""Steps of k3, zeros among them, that the absolute norm and a fall look back on."""
FIRST = 3
"""Steps of k3 that a pair began with."""
SIGNED = 50
"""Steps of k1 whose sign is judged together."""
HABIT = 100
"""Steps of |J| of dominance whose largest is the run's habit."""
HABIT_GROWTH, HABIT_START = 2.0, 4.0
"""A flagged |J| enters the habit at most as twice the habit so far (at least 4): a run that turns
heavy-tailed is told once or twice, and a single huge token blinds nobody."""
MOVED = 0.25
"""Log k3 by which a level is another one, seven steps after a jump that was told."""
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


def to_reference(pair: str) -> bool:
    """Whether a pair is a KL to the reference."""
    return pair.endswith("_ref")


@dataclass(frozen=True)
class Reading:
    """One pair at one step, with what came before it; read it before the track takes it.

    Attributes:
        pair: this step's numbers.
        run: values of the run at this step, see this module.
        score: log k3 against its level.
        unit: what k3 is rounded to, nats.
        k1: k1's mean against its flat level.
        outliers: square root of the share of outliers against its flat level.
        tokens: log of the number of tokens against its flat level.
        length: log of the mean length of a sequence, tokens, against its flat level.
        alike: updates since both policies began to give the very same numbers, up to this step;
            nan if they do not now.
        steps: steps of this pair before this one, since its (new) start.
        age: and since it was first seen.
        track: what came before.
    """

    pair: PairReport
    run: Mapping[str, float]
    score: Score
    unit: float
    k1: FlatScore
    outliers: FlatScore
    tokens: FlatScore
    length: FlatScore
    alike: float
    steps: int
    age: int
    track: Track

    def __getitem__(self, metric: str) -> float:
        return self.pair[metric]

    def of_run(self, name: str) -> float:
        """A value of the run, nan if it is unknown."""
        return self.run.get(f"run/{name}", math.nan)

    def habit(self, estimator: str) -> float:
        """The largest |J| of dominance in the last steps, 0 at first."""
        return max(self.track._habit[estimator].last(HABIT).tolist(), default=0.0)

    @once
    def history(self) -> Floats:
        """Log k3 of earlier steps since the last move that was told, oldest first."""
        return self.track._history.last(HISTORY)

    @once
    def seen(self) -> Floats:
        """Log k3 of earlier steps."""
        return self.track._seen.last(SEEN)

    @once
    def latest(self) -> Floats:
        """K3 of the last earlier steps, zeros among them."""
        return self.track._latest.last(LATEST)

    @property
    def first(self) -> list[float]:
        """K3 of the first steps of this pair."""
        return self.track._first

    @property
    def signs(self) -> tuple[Floats, Floats]:
        """Earlier k1 means and their squared standard errors."""
        means, squares = self.track._signs
        return means.last(SIGNED), squares.last(SIGNED)

    @property
    def gaps(self) -> tuple[Floats, Floats]:
        """K3 - k1 of earlier steps at which it tells (`gap_error`), and squared errors."""
        gaps, squares = self.track._gaps
        return gaps.last(GAPS), squares.last(GAPS)

    @once
    def last_three(self) -> list[float]:
        """K3 of the last three steps that had one, this one the last; empty if it has none."""
        k3 = finite(self["k3/mean"])
        return [] if math.isnan(k3) else [*self.latest[-2:].tolist(), k3]

    @once
    def signed_mean(self) -> float:
        """K1 of tokens that q drew, so that its expectation is a KL; nan: they are of another's.

        Of another's tokens that weights hardly change (`NEARLY_ALL`) the weighted mean: it is that
        of draws from q at these prefixes, and no prefix has a KL below 0; not where p is `policy`,
        which likes the tokens that it has learned from.
        """
        if self["on_policy"] != 0:
            return finite(self["k1/mean"])
        told = self._weights_hardly_change and not self.pair.name.endswith("_policy")
        return finite(self["iw/k1/mean"]) if told else math.nan

    @property
    def _weights_hardly_change(self) -> bool:
        """Whether the tokens of another policy are as good as q's, by log-probs that can be."""
        known = self.pair.waits or self.pair.cause.name != UNKNOWN_SAMPLER
        return self["iw/ess"] >= NEARLY_ALL and known

    @once
    def sign_error(self) -> float:
        """Standard error of k1 by sequence, or by prompt if that is larger; nan: unknown."""
        error, by_prompt = (finite(self[name]) for name in ("k1/sequence_se", "k1/se"))
        return by_prompt if by_prompt > error else error

    @once
    def gap_error(self) -> float:
        """Standard error of the gap; 0 where k1 and k3 are equal, nan where it is unknown.

        Known where q drew the tokens, or tokens as good (`signed_mean`): the gap is weighted there.
        By sequence, since the gap's expectation is 0 for every prompt alone, but not below that by
        prompt: completions of one prompt may be copies. As wide as the t of that many sequences is
        wider than a normal deviate.
        """
        if self["on_policy"] != 1 and not self._weights_hardly_change:
            return math.nan
        gap, z = finite(self["gap"]), finite(self["gap_z"])
        if (error := finite(self["gap_se"])) > 0:
            t = t_of_deviate(z, self["clusters"] - 1)
            t = gap / error if math.isnan(t) or abs(t) > abs(gap / error) else t
            z = deviate_of_t(t, self["sequences"] - 1)
        if gap == 0:  # of all tokens, or between two weighted means
            return error if error > 0 else 0.0
        return finite(gap / z) if z else math.nan


class Track:
    """The memory of one pair."""

    def __init__(self) -> None:
        self._outliers = FlatLevel()
        self._tokens = FlatLevel()
        self._length = FlatLevel()
        self._signs = (Window(SIGNED), Window(SIGNED))
        self._gaps = (Window(GAPS - 1), Window(GAPS - 1))
        self._habit = {name: Window(HABIT) for name in ("k1", "k3")}
        self._first: list[float] = []
        self._age = 0
        self._alike = self._updates = math.nan
        self.restart()

    def restart(self) -> None:
        """Forget the level of KL: the reference is another one from here on."""
        self._level = Level()
        self._k1 = FlatLevel()
        self._history = Window(HISTORY)
        self._seen = Window(SEEN)
        self._digits = Window(SEEN)
        self._latest = Window(LATEST)
        self._steps = 0
        self._jump = 0

    @property
    def steps(self) -> int:
        """Steps of this pair, since its (new) start."""
        return self._steps

    def read(self, pair: PairReport, run: Mapping[str, float]) -> Reading:
        """One step against the past; changes nothing."""
        k3 = finite(pair["k3/mean"])
        digits = self._digits.last(SEEN).tolist()
        step = unit(max([decimals(k3), *digits])) if math.isfinite(k3) else 0.0
        score = self._score(pair, k3, step)
        share = finite(pair["outliers/rate"]) / 1e4
        root = math.sqrt(share) if share >= 0 else math.nan
        return Reading(
            pair=pair,
            run=run,
            score=score,
            unit=step,
            k1=self._k1.score(finite(pair["k1/mean"]), finite(pair["k1/se"]), self._moved(k3)),
            outliers=self._outliers.score(root, _share_error(pair.tokens)),
            tokens=self._tokens.score(_log(pair.tokens), 0.0),
            length=self._length.score(_log(pair.tokens) - _log(pair["sequences"]), 0.0),
            alike=self._alike_for(pair, run),
            steps=self._steps,
            age=self._age,
            track=self,
        )

    def _score(self, pair: PairReport, k3: float, step: float) -> Score:
        if not k3 > 0:
            return Score()
        se = finite(pair["k3/se"]) / k3
        known = 0.0 if math.isnan(se) else min(abs(se), LARGEST_RELATIVE_ERROR)
        return self._level.score(math.log(k3), known, step)

    def _moved(self, k3: float) -> float:
        """How far k3 is from its own median, nats: k1 estimates the same KL and may move as far."""
        usual = self._seen.last(LENGTH, skip=SKIP)
        return finite(k3 - math.exp(median(usual))) if usual.size and k3 >= 0 else 0.0

    def _alike_for(self, pair: PairReport, run: Mapping[str, float]) -> float:
        """Updates up to this step in which both policies gave the very same numbers."""
        zero = pair.tokens > 0 and pair["k3/mean"] == 0 == pair["k1/mean"]
        if not (pair["identical"] == 1 or zero):
            return math.nan
        if math.isnan(self._alike):
            return 0.0
        updates = run.get("run/updates", math.nan) - self._updates
        moving = run.get("run/learning_rate", math.nan) != 0
        return self._alike + moving * (1.0 if math.isnan(updates) else updates)

    def take(self, reading: Reading, withheld: Container[str]) -> None:
        """Learn from a step: what a rule withholds stays out, so does what is not a number."""
        self._age += 1
        self._k1.take(reading.k1)
        self._outliers.take(reading.outliers)
        self._tokens.take(reading.tokens)
        self._length.take(reading.length)
        self._alike = reading.alike
        self._updates = reading.of_run("updates")
        self._take_errors(reading)
        for name, habit in (("k1", HABIT_K1), ("k3", HABIT_K3)):
            j = abs(finite(reading[f"dominance/{name}/j"]))
            if habit in withheld:
                j = min(j, HABIT_GROWTH * max(reading.habit(name), HABIT_START))
            if not math.isnan(j):
                self._habit[name].append(j)
        if START in withheld and reading["k3/mean"] > 0:  # zeros enter no level
            self.restart()
        moved = PAST in withheld or self._stays(reading.score, JUMP in withheld)
        self._take_k3(finite(reading["k3/mean"]), reading.score, moved)

    def _stays(self, score: Score, jumps: bool) -> bool:
        """Whether the level is another one since a jump that was told seven steps ago."""
        before = self._jump
        self._jump = NOW if jumps else max(before - 1, 0)
        return before == 1 and not jumps and score.now - score.before > MOVED

    def _take_errors(self, reading: Reading) -> None:
        gap, error = finite(reading["gap"]), reading.gap_error
        if not math.isnan(error):
            self._gaps[0].append(gap)
            self._gaps[1].append(error**2)
        if not math.isnan(k1 := reading.signed_mean):
            self._signs[0].append(k1)
            error = reading.sign_error
            error = reading.k1.se if math.isnan(error) else error
            error = abs(k1) if math.isnan(error) else error  # of one sequence
            self._signs[1].append(error**2)

    def _take_k3(self, k3: float, score: Score, moved: bool) -> None:
        self._steps += 1
        if math.isnan(k3):
            return
        self._latest.append(k3)
        if len(self._first) < FIRST:
            self._first.append(k3)
        if math.isnan(score.y):
            return
        self._digits.append(decimals(k3))
        self._seen.append(score.y)
        if moved:
            self._history = Window(HISTORY)
        self._history.append(score.y)
        self._level.take(score)

    def state_dict(self) -> dict[str, Any]:
        """Everything remembered, as numbers and lists."""
        return {
            "level": self._level.state_dict(),
            "k1": self._k1.state_dict(),
            "outliers": self._outliers.state_dict(),
            "tokens": self._tokens.state_dict(),
            "length": self._length.state_dict(),
            "history": self._history.tolist(),
            "seen": self._seen.tolist(),
            "digits": self._digits.tolist(),
            "latest": self._latest.tolist(),
            "first": list(self._first),
            "signs": [window.tolist() for window in self._signs],
            "gaps": [window.tolist() for window in self._gaps],
            "habit": {name: window.tolist() for name, window in self._habit.items()},
            "steps": self._steps,
            "jump": self._jump,
            "age": self._age,
            "alike": finite_or_none(self._alike),
            "updates": finite_or_none(self._updates),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave, of this version or the first."""
        self._k1.load_state_dict(state["k1"])
        self._outliers.load_state_dict(state["outliers"])
        self._tokens.load_state_dict(state.get("tokens", {}))
        self._length.load_state_dict(state.get("length", {}))
        self._history = Window(HISTORY, state["history"])
        self._seen = Window(SEEN, state["seen"])
        self._steps = count_of(state["steps"], "steps of a pair")
        self._jump = count_of(state.get("jump", 0), "jump of a pair")
        self._age = count_of(state.get("age", self._steps), "age of a pair")
        self._first = numbers_of(state.get("first", ()), "first k3 of a pair")
        seen = self._seen.last(SEEN)
        self._latest = Window(LATEST, state.get("latest", np.exp(seen).tolist()))
        self._digits = Window(SEEN, state.get("digits", ()))
        first, second = state["signs"]
        self._signs = (Window(SIGNED, first), Window(SIGNED, second))
        first, second = state["gaps"]
        self._gaps = (Window(GAPS - 1, first), Window(GAPS - 1, second))
        self._habit = {name: Window(HABIT, state["habit"][name]) for name in self._habit}
        self._alike, self._updates = (
            numbers_of([as_float(state.get(name))], f"{name} of a pair")[0]
            for name in ("alike", "updates")
        )
        if "level" in state:
            self._level.load_state_dict(state["level"])
        else:
            self._level.relive(seen)


def _share_error(tokens: float) -> float:
    """Standard error of the square root of a share of N tokens, 1 / (2 sqrt N), clustered."""
    return finite(math.sqrt(CLUSTERING / (4 * tokens))) if tokens > 0 else math.nan


def _log(number: float) -> float:
    """The logarithm of a number of things, nan of none."""
    return math.log(number) if 0 < number < LARGE else math.nan
