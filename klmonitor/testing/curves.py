"""Series of k3 that look like published runs: generators made from what was measured of them.

Of 23 curves of GRPO runs (46 to 300 steps, k3 per token, console logs with four decimals), log k3
around its running median of 15 steps, as 10, 50 and 90 % quantiles over the runs:

    spread (1.4826 MAD)                .15   .17   .21
    99.5 % quantile, in spreads       2.6   3.2   4.0     Student's t with 6 degrees of freedom: 3.5
    autocorrelation at one step       -.07   .05   .21
    change of the level in 20 steps    .14   .29   .36    standard deviation
    steps of the start-up               6    10    17     from 1e-4 nats to the plateau
    plateau, nats                      .03   .05   .1

A start-up is steep and then ever less so: log k3 falls short of the plateau by 6.2 (1 - t / T)^1.6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SPREADS = (0.15, 0.21)
TAIL_DF = 6
STARTS = (5, 13)
"""Steps of a start-up, the last excluded."""
DEPTH, BEND = 6.2, 1.6
PLATEAUS = (0.03, 0.1)
DECIMALS = 4

Shape = Callable[[Floats], Floats]
"""Steps since the event -> what is added to log k3."""


def real_curve(
    steps: int,
    seed: int,
    event: Shape | None = None,
    at: int = 0,
    *,
    trend: float = 0.0,
    wander: float = 0.0,
    decimals: int | None = DECIMALS,
) -> Floats:
    """k3 of a run that starts up within 5 to 12 steps and then keeps its level.

    The same seed gives the same run up to the event, whatever the event.

    Args:
        steps: of the run.
        seed: of the random numbers.
        event: what happens.
        at: its first step.
        trend: of log k3 a step, after the start-up; below 0 as under learning-rate decay.
        wander: standard deviation of a random walk of log k3, a step.
        decimals: to which k3 is rounded; None for none.
    """
    rng = np.random.default_rng([seed, 0x6B6C])
    t = np.arange(steps, dtype=np.float64)
    start = float(rng.integers(*STARTS))
    level = math.log(rng.uniform(*PLATEAUS))
    spread = rng.uniform(*SPREADS)
    noise = spread * rng.standard_t(TAIL_DF, size=steps)
    walk = np.cumsum(wander * rng.normal(size=steps))
    ramp = -DEPTH * np.maximum(1 - t / start, 0) ** BEND
    y = level + ramp + noise + walk + trend * np.maximum(t - start, 0)
    if event is not None:
        y[at:] += event(t[: steps - at])
    k3: Floats = np.exp(y)
    rounded: Floats = np.round(k3, 17 if decimals is None else decimals)
    return rounded


def _lognormal(steps: int, rng: np.random.Generator) -> Floats:
    return 0.25 * (np.exp(rng.normal(0, 0.5, steps)) - 1)


def _slow(steps: int, rng: np.random.Generator) -> Floats:
    shocks = rng.normal(0, 0.2 * math.sqrt(1 - 0.9**2), steps)
    values = np.zeros(steps)
    for i in range(1, steps):
        values[i] = 0.9 * values[i - 1] + shocks[i]
    return values


NOISES: Mapping[str, Callable[[int, np.random.Generator], Floats]] = {
    "lognormal": _lognormal,
    "t3": lambda steps, rng: 0.15 * rng.standard_t(3, steps),
    "signed": lambda steps, rng: np.log(np.abs(1 + rng.normal(size=steps))),
    "AR .9": _slow,
}
"""Noises of log k3 that are not those of the measured runs: skewed, heavy-tailed, of a signed k1
that is taken for k3 (its size), and slow."""


def noisy_curve(noise: str, steps: int, seed: int) -> Floats:
    """k3 with a noise of `NOISES` around a flat level.

    Raises:
        KeyError: no such noise.
    """
    rng = np.random.default_rng([seed, *noise.encode()])
    return np.asarray(np.exp(math.log(0.05) + NOISES[noise](steps, rng)), dtype=np.float64)
