"""Slow rises that a trend-following level cannot see: drift over hundreds of steps, runaway.

Both compare with a flat past, and both must stay silent while a run starts up, where KL rises
fast and then ever more slowly: growth counts only where it does not slow down.
"""

from __future__ import annotations

import math

from klmonitor.rules.rule import CRITICAL, SIMMERING, WARN, Finding, Rule, Thresholds
from klmonitor.rules.spikes import LOOK_FIRST
from klmonitor.rules.track import Reading, finite
from klmonitor.rules.window import Floats, median, robust_sd
from klmonitor.rules.words import nats

RECENT = 50
"""Drift: accepted steps whose median is the level now."""
PAST = (400, 200)
"""Drift: the steps it is compared with, counted back from now."""
FLOOR = 0.03
"""The smallest spread of log k3 that is believed."""
LEAST_RATIO = 1.2
"""Drift: a smaller rise is calm, whatever its z."""
BLOCK = 30
"""Runaway: steps between the levels that are compared; in each of two KL must double."""
NOW = 5
"""Runaway: steps whose median is a level."""


def drift(reading: Reading, limits: Thresholds) -> Finding | None:
    """The level of the last 50 steps is far above that of 200 to 400 steps ago (R3).

    Thresholds: `z` and `rearm` in spreads of log k3 then, `ratio` and `critical_ratio` in
    multiples of the level then.
    """
    history = reading.history
    if history.size < PAST[0]:
        return None
    before, rise, spread = risen(history[-PAST[0] : -PAST[1]], history[-RECENT:])
    if rise < math.log(LEAST_RATIO):
        return None
    z = rise / max(spread, FLOOR)
    if not (z > limits["z"] and rise > math.log(limits["ratio"])):
        return SIMMERING if z > limits["rearm"] else None
    critical = rise >= math.log(limits["critical_ratio"])
    return Finding(
        level=CRITICAL if critical else WARN,
        severity="critical" if critical else "warn",
        message=(
            f"k3 has drifted up to {nats(math.exp(before + rise))} per token (median of "
            f"{RECENT} steps), {math.exp(rise):.3g}x the {nats(math.exp(before))} of "
            f"{PAST[1]} to {PAST[0]} steps ago (z = {z:.1f})"
        ),
        values={
            "k3": math.exp(before + rise),
            "before": math.exp(before),
            "ratio": math.exp(rise),
            "z": z,
        },
    )


def risen(past: Floats, recent: Floats) -> tuple[float, float, float]:
    """The level of past steps, how far that of recent ones is above it, the past's spread."""
    before = median(past)
    return before, median(recent) - before, robust_sd(past, before)


def runaway(reading: Reading, limits: Thresholds) -> Finding | None:
    """KL has doubled twice, each time within 30 steps, and does not slow down.

    Thresholds: `gain`, log of the growth in each block of 30 steps; `slowing`, the least that the
    second gain must be of the first; `steps`, how many are seen before it is judged.
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
    gain = limits["gain"]
    if not (first > gain and second > gain and second > limits["slowing"] * first):
        return SIMMERING if second > gain else None
    return Finding(
        level=CRITICAL,
        severity="critical",
        message=(
            f"k3 runs away: {nats(math.exp(old))} per token, {nats(math.exp(middle))} and "
            f"{nats(math.exp(now))} at {BLOCK} steps' distance, doubling every "
            f"{2 * BLOCK * math.log(2) / (first + second):.0f} steps"
        ),
        values={
            "k3": math.exp(now),
            "before": math.exp(old),
            "ratio": math.exp(now - old),
            "doubling_steps": 2 * BLOCK * math.log(2) / (first + second),
        },
    )


def limit(reading: Reading, limits: Thresholds) -> Finding | None:
    """k3 is above the user's own limit for this pair (R4).

    Thresholds: pair -> nats per token.
    """
    most = limits.get(reading.pair.name, math.inf)
    k3 = finite(reading["k3/mean"])
    if not k3 > most:
        return SIMMERING if k3 > LIMIT_REARM * most else None
    return Finding(
        level=CRITICAL,
        severity="critical",
        message=f"k3 = {nats(k3)} per token is above the limit of {nats(most)}",
        values={"k3": k3, "limit": most},
    )


LIMIT_REARM = 0.8
"""An episode above the limit ends below this share of it."""

DRIFT = Rule(
    kind="drift",
    judge=drift,
    thresholds={"z": 4.5, "ratio": 1.5, "critical_ratio": 8.0, "rearm": 3.0},
    means=(
        "the policy keeps moving away from p: the KL coefficient is too small for this "
        "reward, or the reward is being gamed"
    ),
    action=(
        "compare samples of now and of 400 steps ago; if the reward has not risen with KL, raise "
        "the KL coefficient or lower the learning rate"
    ),
    source="docs/alerts.md#drift: median of 50 steps against that of 200 to 400 steps ago",
    cooldown=200,
    calm_for=5,
)
RUNAWAY = Rule(
    kind="runaway",
    judge=runaway,
    thresholds={"gain": math.log(2), "slowing": 0.7, "steps": 80},
    means="a feedback loop: each update makes the next one larger",
    action="lower the learning rate or stop: exponential growth does not end by itself; "
    + LOOK_FIRST,
    source="docs/alerts.md#runaway: two doublings within 30 steps each",
    cooldown=100,
    calm_for=5,
)
LIMIT = Rule(
    kind="limit",
    judge=limit,
    thresholds={},
    means="the budget that you set is spent",
    action=LOOK_FIRST,
    source="docs/alerts.md#limit: set by you",
    on=False,
    per_pair=True,
    calm_for=3,
)
