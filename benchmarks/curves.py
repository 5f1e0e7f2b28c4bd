"""Real curves of KL from a directory, replayed, and their residuals set on their own start-ups.

A directory holds CSV files with columns ``step`` and ``kl``, and if wanted ``SERIES.csv`` with
``file`` and ``key``: a key that ends in ``objective/kl`` is a sum over a sequence, for which the
absolute norm per token is off; a series with negative values is replayed as it is, as a user who
mistakes it for k3 would. A labels file says
what happened (``file, step, end, kind, reason``; kind ``none``: nothing).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from klmonitor.report import PairReport, Report
from klmonitor.rules.window import median

Floats = NDArray[np.float64]

LABELS = Path(__file__).with_name("rules_labels.csv")
SUMS = ("objective/kl",)
"""Keys of series that are sums over a sequence."""
AROUND = 10
"""Steps on either side whose medians a value is a spike of, in hindsight."""
EARLY, LATE = 1, 3
"""Steps by which an alert may come before a labelled event begins and after it ends."""
SMOOTH = 7
"""Steps on either side of the running median that residuals are taken from."""
RAMP = 15
"""Steps of a real start-up; the level is that of the running median after it."""
RISE, SETTLED = 2.0, 0.7
"""Log k3 that a start-up rises by at least, and by which the level may move once it is over."""
BLOCK = 10
"""Residuals that are drawn together, so that their autocorrelation is kept."""


@dataclass(frozen=True)
class Label:
    """Something that happened in a curve, from its first to its last step."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True)
class Curve:
    """One run.

    Attributes:
        name: of its file.
        key: under which the run logged it, empty if unknown.
        steps: (steps,) as logged.
        kl: (steps,) nats, nan where it was not logged.
        labels: what happened.
    """

    name: str
    key: str
    steps: NDArray[np.int64]
    kl: Floats
    labels: tuple[Label, ...]

    @property
    def signed(self) -> bool:
        """Whether it has negative values, so that it is no k3."""
        return bool((self.kl < 0).any())

    @property
    def per_token(self) -> bool:
        """Whether it is a mean over tokens."""
        return not self.key.endswith(SUMS)

    def reports(self) -> Iterator[Report]:
        """As the reports of a run."""
        for at, value in zip(self.steps.tolist(), self.kl.tolist(), strict=True):
            yield one_report(at, value)

    def happened(self, step: int) -> bool:
        """Whether an alert at a step is about something that is labelled."""
        return any(one.start - EARLY <= step <= one.end + LATE for one in self.labels)

    def spikes(self) -> dict[int, float]:
        """Steps from the 11th on -> factor over the larger of the medians around it, 3 or more."""
        if self.signed:
            return {}
        found = {}
        for i in range(AROUND, len(self.kl) - 1):
            around = [self.kl[i - AROUND : i], self.kl[i + 1 : i + 1 + AROUND]]
            known = [part for part in around if part.size >= AROUND // 2]
            level = max(float(np.nanmedian(part)) for part in known)
            if level > 0 and self.kl[i] >= 3 * level:
                found[int(self.steps[i])] = float(self.kl[i] / level)
        return found


def load(directory: Path, labels: Path = LABELS) -> list[Curve]:
    """All curves of a directory."""
    said: dict[str, list[Label]] = {}
    with labels.open(encoding="utf-8", newline="") as rows:
        for row in csv.DictReader(rows):
            of_file = said.setdefault(row["file"], [])
            if row["step"]:
                start = int(row["step"])
                of_file.append(Label(start, int(row["end"] or start), row["kind"]))
    keys: dict[str, str] = {}
    index = directory / "SERIES.csv"
    if index.exists():
        with index.open(encoding="utf-8", newline="") as rows:
            keys = {row["file"]: row["key"] for row in csv.DictReader(rows)}
    curves = []
    for file in sorted(directory.glob("*.csv")):
        with file.open(encoding="utf-8", newline="") as rows:
            reader = csv.DictReader(rows)
            if not {"step", "kl"} <= set(reader.fieldnames or ()):
                continue
            pairs = [(float(r["step"]), float(r["kl"] or "nan")) for r in reader]
        steps, kl = (np.array(column) for column in zip(*pairs, strict=True))
        happened = tuple(said.get(file.name, ()))
        curves.append(
            Curve(file.name, keys.get(file.name, ""), steps.astype(np.int64), kl, happened)
        )
    return curves


# --- bootstrapped residuals ------------------------------------------------------------------
@dataclass(frozen=True)
class Parts:
    """What a curve is made of.

    Attributes:
        start: (RAMP,) log k3 of its first steps.
        level: log k3 after them.
        residuals: (any,) of log k3 around its running median, labelled spikes left out.
    """

    start: Floats
    level: float
    residuals: Floats


def taken_apart(curves: Sequence[Curve]) -> list[Parts]:
    """The parts of curves that start from 0 and reach a plateau."""
    found = []
    for curve in curves:
        if curve.signed or not curve.per_token or len(curve.kl) < 4 * RAMP:
            continue
        y = np.log(np.where(curve.kl > 0, curve.kl, np.nan))
        y[:3] = np.where(np.isnan(y[:3]), np.nanmin(y), y[:3])  # a start at exactly 0
        spikes = [one for one in curve.labels if one.kind == "spike"]
        odd = np.array(
            [any(one.start <= s <= one.end for one in spikes) for s in curve.steps.tolist()]
        )
        calm = np.where(odd, np.nan, y)
        running = np.array(
            [np.nanmedian(calm[max(i - SMOOTH, 0) : i + SMOOTH + 1]) for i in range(len(calm))]
        )
        residuals = (calm - running)[RAMP:]
        level, later = float(running[RAMP]), float(np.nanmedian(calm[RAMP + 10 : RAMP + 25]))
        if level - y[0] > RISE and abs(later - level) < SETTLED:
            start = np.where(np.isnan(calm[:RAMP]), running[:RAMP], calm[:RAMP])
            found.append(Parts(start, level, residuals[np.isfinite(residuals)]))
    return found


Shape = Callable[[Floats], Floats]
"""Steps since the event -> what is added to log k3."""


@dataclass(frozen=True)
class Trial:
    """An event that bootstrapped runs must show.

    Attributes:
        at: its first step.
        within: steps within which it must be told, 1 for at once.
        shape: of the event.
        trend: log k3 a step from the end of the start-up on.
    """

    at: int
    within: int
    shape: Shape
    trend: float = 0.0


TRIALS: dict[str, Trial] = {
    "x5 at 40": Trial(40, 1, lambda t: np.full_like(t, math.log(5))),
    "x10 at 40": Trial(40, 1, lambda t: np.full_like(t, math.log(10))),
    "x4 at 150": Trial(150, 1, lambda t: np.full_like(t, math.log(4))),
    "step x2 at 150": Trial(150, 20, lambda t: np.full_like(t, math.log(2))),
    "drift x2 in 100 at 200": Trial(200, 200, lambda t: np.log1p(np.minimum(t / 100, 1))),
    "x20 on a fall of 4 %": Trial(100, 1, lambda t: np.full_like(t, math.log(20)), -0.04),
}


def bootstrapped(
    parts: Sequence[Parts], steps: int, seed: int, trial: Trial | None = None, digits: int = 4
) -> Floats:
    """k3 of one run: a real start-up, its level, and another run's residuals in blocks.

    Args:
        parts: of real curves.
        steps: of the run.
        seed: of the random numbers.
        trial: an event.
        digits: after the point that k3 is rounded to.
    """
    rng = np.random.default_rng(seed)
    start, noise = (parts[int(i)] for i in rng.integers(len(parts), size=2))
    firsts = rng.integers(noise.residuals.size, size=steps // BLOCK + 1)
    places = (firsts[:, None] + np.arange(BLOCK)).ravel()[:steps]
    y = start.level + noise.residuals[places % noise.residuals.size]
    y[:RAMP] = start.start[:steps]
    if trial is not None:
        t = np.arange(steps, dtype=np.float64)
        y += trial.trend * np.maximum(t - RAMP, 0)
        y[trial.at :] += trial.shape(t[: steps - trial.at])
    k3 = np.exp(y)
    rounded = np.round(k3, digits)
    return rounded if trial is None or not trial.trend else k3


def as_reports(k3: Floats) -> Iterator[Report]:
    """A series of k3 as the reports of a run, as a log has them."""
    for at, value in enumerate(k3.tolist()):
        yield one_report(at, value)


def one_report(step: int, value: float) -> Report:
    """A report of nothing but the k3 of a step; of no pair where it was not logged."""
    pair = PairReport("policy_ref", {"k3/mean": value})
    pairs = {} if math.isnan(value) else {pair.name: pair}
    return Report(step=step, first_step=step, pairs=pairs)


def measured(parts: Parts) -> tuple[float, float, float]:
    """Spread of the residuals (1.4826 MAD), 99.5 % quantile in spreads, autocorrelation."""
    r = parts.residuals
    spread = 1.4826 * median(np.abs(r - median(r)))
    return (
        spread,
        float(np.quantile(r, 0.995)) / spread,
        float(np.corrcoef(r[:-1], r[1:])[0, 1]),
    )
