"""A run's KL, one value a step, ordinary or with an event.

A series is what a monitor sees of one pair over a run: one k3 and one k1 a step, with their
standard errors. The true log KL is

    log KL(t) = L + m(t) + a(t) + event(t),    L = log 10^U(-3.3, -2.3),

where m is the family's trend and a an AR(1) noise (phi 0.6, Student-t innovations with 5 degrees
of freedom, stationary standard deviation 0.12). Observed are k3 = KL x lognormal noise with
relative standard error 2.7 sqrt(5 / N), and k1 = KL + normal noise with standard error
sqrt(2 KL) sqrt(5 / N): N tokens whose errors are correlated within sequences as in real runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from klmonitor.report import PairReport, Report

Floats = NDArray[np.float64]

AR_PHI, AR_SD, AR_DF = 0.6, 0.12, 5
K3_RELATIVE_SD = 2.7
CLUSTERING = 5
"""Tokens per effectively independent token."""
RAMP_STEPS = 60
"""Time constant of the start-up ramp, steps."""


@dataclass(frozen=True)
class Series:
    """One value a step, arrays of equal length (steps,); KL in nats per token.

    Attributes:
        k3: observed mean of k3.
        k3_se: its standard error.
        k1: observed mean of k1.
        k1_se: its standard error.
        tokens: tokens of the step.
        event_at: the step at which the event begins, None if there is none.
    """

    k3: Floats
    k3_se: Floats
    k1: Floats
    k1_se: Floats
    tokens: Floats
    event_at: int | None = None

    def __len__(self) -> int:
        return len(self.k3)


Shape = Callable[[Floats, np.random.Generator], Floats]
"""Steps since the start (or since the event) -> what is added to log KL."""


def _walk(t: Floats, rng: np.random.Generator) -> Floats:
    return np.cumsum(rng.normal(0, 0.02, t.size))


def _oscillation(t: Floats, rng: np.random.Generator) -> Floats:
    return 0.35 * np.sin(2 * math.pi * (t / 150 + rng.random()))


FAMILIES: Mapping[str, Shape] = {
    "flat": lambda t, rng: np.zeros_like(t),
    "rise": lambda t, rng: 1.8 * (1 - np.exp(-t / 700)),
    "warmup": lambda t, rng: -2.5 * np.exp(-t / 40) + 0.5 * t / 2000,
    "walk": _walk,
    "varying": lambda t, rng: np.zeros_like(t),
    "oscillation": _oscillation,
    "ramp": lambda t, rng: np.log(1 - np.exp(-(t + 1) / RAMP_STEPS)),
}
"""Ordinary runs, by the shape of log KL; ``varying`` varies the tokens of a step instead."""


def spike(factor: float, steps: int = 1) -> Shape:
    """KL times `factor` for a number of steps."""
    return lambda t, rng: np.where(t < steps, math.log(factor), 0.0)


def step(factor: float) -> Shape:
    """KL times `factor` from the event on."""
    return lambda t, rng: np.full_like(t, math.log(factor))


def drift(factor: float, steps: int) -> Shape:
    """KL grows linearly in time to `factor` times its level, then stays."""
    return lambda t, rng: np.log1p((factor - 1) * np.minimum((t + 1) / steps, 1.0))


def runaway(doubling: float = 20, at_most: float = 6) -> Shape:
    """KL doubles every so many steps, at most so many times."""
    return lambda t, rng: math.log(2) * np.minimum((t + 1) / doubling, at_most)


EVENTS: Mapping[str, Shape] = {
    "spike x3": spike(3),
    "spike x5": spike(5),
    "spike x10": spike(10),
    "spike x3, 3 steps": spike(3, steps=3),
    "step x1.5": step(1.5),
    "step x2": step(2),
    "drift x2 in 50": drift(2, 50),
    "drift x2 in 200": drift(2, 200),
    "runaway x2 in 20": runaway(20),
}
"""Events by name; any `Shape` will do."""


def kl_series(
    family: str,
    event: str | Shape | None = None,
    *,
    steps: int = 2000,
    at: int = 1200,
    tokens: int = 16_384,
    seed: int = 0,
) -> Series:
    """Simulate a run.

    The same family, `steps` and seed give the same run up to the event, whatever the event.

    Args:
        family: a name of `FAMILIES`.
        event: a name of `EVENTS`, or a function of the steps since `at`; None for none.
        steps: length of the run.
        at: the step at which the event begins.
        tokens: tokens a step; times exp(N(0, 1)) where the family is ``"varying"``.
        seed: of the random numbers.

    Raises:
        ValueError: no such family or event.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}: choose from {', '.join(FAMILIES)}")
    if isinstance(event, str) and event not in EVENTS:
        raise ValueError(f"unknown event {event!r}: choose from {', '.join(EVENTS)}")
    rng = np.random.default_rng([seed, *family.encode()])
    t = np.arange(steps, dtype=np.float64)
    log_kl = math.log(10) * rng.uniform(-3.3, -2.3) + FAMILIES[family](t, rng) + _ar1(steps, rng)
    n = np.full(steps, float(tokens))
    if family == "varying":
        n = np.maximum(np.round(n * np.exp(rng.normal(size=steps))), 1.0)
    noise_k3, noise_k1 = rng.normal(size=(2, steps))
    if event is not None:
        shape = EVENTS[event] if isinstance(event, str) else event
        log_kl[at:] += shape(t[: steps - at], rng)
    kl = np.exp(log_kl)
    relative = K3_RELATIVE_SD * np.sqrt(CLUSTERING / n)
    k3 = kl * np.exp(relative * noise_k3)
    k1_se = np.sqrt(2 * kl * CLUSTERING / n)
    return Series(
        k3=k3,
        k3_se=k3 * relative,
        k1=kl + k1_se * noise_k1,
        k1_se=k1_se,
        tokens=n,
        event_at=None if event is None else at,
    )


def _ar1(steps: int, rng: np.random.Generator) -> Floats:
    """AR(1) noise with Student-t innovations, stationary from the first step."""
    variance = AR_DF / (AR_DF - 2)
    shocks = rng.standard_t(AR_DF, size=steps) * AR_SD * math.sqrt((1 - AR_PHI**2) / variance)
    values = np.empty(steps)
    value = rng.normal(0, AR_SD)
    for i, shock in enumerate(shocks):
        value = AR_PHI * value + shock
        values[i] = value
    return values


def reports(series: Series, pair: str = "policy_ref", sequences: int = 64) -> Iterator[Report]:
    """A series as the reports that a monitor would have made of it."""
    for t in range(len(series)):
        values = {
            "k3/mean": float(series.k3[t]),
            "k3/se": float(series.k3_se[t]),
            "k1/mean": float(series.k1[t]),
            "k1/se": float(series.k1_se[t]),
            "tokens": float(series.tokens[t]),
            "sequences": float(sequences),
            "nonfinite": 0.0,
            "on_policy": 1.0,
        }
        yield Report(step=t, first_step=t, pairs={pair: PairReport(pair, values)})
