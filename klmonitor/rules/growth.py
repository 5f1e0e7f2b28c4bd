"""Slow rises that a level of the last steps cannot see: drift over hundreds of steps, runaway.

Both compare with a flat past, and both must stay silent while a run starts up, where KL rises
fast and then ever more slowly: growth counts only where it does not slow down, and only at a KL
that is one.
"""

from __future__ import annotations

import math

import numpy as np

from klmonitor.rules.rounding import beyond_rounding
from klmonitor.rules.rule import SIMMERING, Finding, Rule, Thresholds
from klmonitor.rules.track import Reading
from klmonitor.rules.window import Floats, median, robust_sd
from klmonitor.rules.words import LOOK_FIRST, MOVED, nats, plain

DRIFT_FROM = 100
"""Drift: steps since the last move that was told."""
PAST_EIGHTHS = 4
"""Drift: eighths of the steps that are the past."""
FLOOR = 0.03
"""The smallest range of the level of log k3 that is believed."""
LEAST_RATIO = 1.2
"""Drift: a smaller rise is calm, whatever its z."""
BLOCK = 30
"""Runaway: steps between the levels that are compared; in each of two KL must double."""
NOW = 9
"""Runaway: steps whose median is a level."""
GOING_ON = 10
"""Runaway: the latest steps, which must still be above as many before them."""


def drift(reading: Reading, limits: Thresholds) -> Finding | None:
    """The level of the last eighth of the steps is far above that of their older half (R3).

    Of at most 400 steps, since the last move that was told. The older half is four eighths, whose
    medians tell how much the level of this run wanders by itself; the lowest is left out, since
    it may be the start-up.
    Thresholds: `z` and `rearm` in ranges of the medians of the three, `ratio` and `critical_ratio`
    in multiples of their middle, `nats` the smallest level now that counts, `critical_nats` that is
    critical.
    """
    history = reading.history
    if history.size < DRIFT_FROM:
        return None
    eighth = history.size // 8
    low, before, high = sorted(
        median(history[i * eighth : (i + 1) * eighth]) for i in range(PAST_EIGHTHS)
    )[1:]
    now = median(history[-eighth:])
    rise, k3 = now - before, math.exp(now)
    if rise < math.log(LEAST_RATIO) or k3 < limits["nats"]:
        return None
    z = beyond_rounding(rise, k3, reading.unit) / max(high - low, FLOOR)
    if not (z > limits["z"] and rise > math.log(limits["ratio"])):
        return SIMMERING if z > limits["rearm"] else None
    critical = rise >= math.log(limits["critical_ratio"]) and k3 >= limits["critical_nats"]
    oldest, youngest = history.size, history.size - PAST_EIGHTHS * eighth + 1
    return Finding(
        message=(
            f"k3 has drifted up to {nats(k3)} per token (median of {eighth} steps), "
            f"{plain(math.exp(rise))}x the {nats(math.exp(before))} of {youngest} to {oldest} "
            f"steps ago, where its level kept within {math.exp(high - low):.3g}x"
        ),
        base=math.exp(before),
        values={
            "k3": k3,
            "before": math.exp(before),
            "ratio": math.exp(rise),
            "within": math.exp(high - low),
            "z": z,
        },
    ).critical_if(critical)


def runaway(reading: Reading, limits: Thresholds) -> Finding | None:
    """KL has doubled twice, each time within 30 steps, does not slow down and still grows.

    Growth as a power of the time since the start is none, however fast: it slows down.
    Thresholds: `gain`, log of the growth in each block of 30 steps; `scales` of a single step's
    noise by which each must be above it, since a median of nine errs by .4 of one; `slowing`, the
    least that the second gain must be of the first;
    `going_on`, the share of the average growth that the latest steps must still show; `steps`, how
    many are seen before it is judged; `nats`, the smallest level now that counts; `critical_nats`,
    that is critical.
    """
    seen = reading.seen
    if seen.size < 2 * BLOCK + NOW or reading.steps < limits["steps"]:
        return None
    if math.isnan(reading.score.y):
        return SIMMERING
    levels = [*seen[-2 * BLOCK - NOW :].tolist(), reading.score.y]
    now, middle, old = (
        sorted(levels[len(levels) - back - NOW : len(levels) - back])[NOW // 2]
        for back in (0, BLOCK, 2 * BLOCK)
    )
    first, second = middle - old, now - middle
    gain, k3 = limits["gain"], math.exp(now)
    lately = beyond_rounding(
        _middle(levels[-GOING_ON:]) - _middle(levels[-2 * GOING_ON : -GOING_ON]), k3, reading.unit
    )
    still = lately > limits["going_on"] * second * GOING_ON / BLOCK
    doubt = limits["scales"] * _noise(np.array(levels))
    grows = min(first, second) > gain + doubt and second > limits["slowing"] * first
    if not (grows and still and k3 > limits["nats"]):
        return SIMMERING if second > gain else None
    critical = k3 >= limits["critical_nats"]
    doubling = 2 * BLOCK * math.log(2) / (first + second)
    return Finding(
        message=(
            f"k3 runs away: {nats(math.exp(old))} per token, {nats(math.exp(middle))} and "
            f"{nats(k3)} at {BLOCK} steps' distance, doubling every {doubling:.0f} steps"
        ),
        base=math.exp(old),
        values={
            "k3": k3,
            "middle": math.exp(middle),
            "before": math.exp(old),
            "ratio": math.exp(now - old),
            "doubling_steps": doubling,
        },
    ).critical_if(critical)


def _noise(levels: Floats) -> float:
    """The scatter of log k3 about its level, from its changes, which hardly show the growth."""
    changes = np.diff(levels)
    return robust_sd(changes, median(changes)) / math.sqrt(2)


def _middle(values: list[float]) -> float:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


DRIFT = Rule(
    judge=drift,
    thresholds={
        "z": 6.0,
        "ratio": 1.5,
        "critical_ratio": 8.0,
        "rearm": 2.0,
        "nats": 0.001,
        "critical_nats": 0.05,
    },
    means=(
        "the policy keeps moving away from p: the KL coefficient is too small for this "
        "reward, or the reward is being gamed"
    ),
    action=(
        "compare samples of now and of then; if the reward has not risen with KL, raise "
        "the KL coefficient or lower the learning rate"
    ),
    source="docs/alerts.md#drift: median of the last eighth of the steps against their older half",
    cooldown=200,
    calm_for=5,
    joins_story=True,
    elsewhere=MOVED,
    lasting=True,
)
RUNAWAY = Rule(
    judge=runaway,
    thresholds={
        "gain": math.log(2),
        "slowing": 0.85,
        "scales": 1.5,
        "going_on": 0.5,
        "steps": 80,
        "nats": 0.02,
        "critical_nats": 0.05,
    },
    means="a feedback loop: each update makes the next one larger",
    action="lower the learning rate or stop: exponential growth does not end by itself; "
    + LOOK_FIRST,
    source="docs/alerts.md#runaway: two doublings within 30 steps each",
    cooldown=100,
    calm_for=5,
    joins_story=True,
    elsewhere=MOVED,
    lasting=True,
)
