"""Sudden rises of k3: one step far above its level, a level that has moved, a surge at start-up.

All three look at log k3, where one threshold serves every noise regime, and are one-sided: KL
that falls is no emergency.
"""

from __future__ import annotations

import math

from klmonitor.report import PairReport
from klmonitor.rules.rule import CRITICAL, SIMMERING, WARN, Finding, Rule, Thresholds
from klmonitor.rules.track import K3_LEVEL, Reading, finite
from klmonitor.rules.words import (
    READ_TOKENS,
    count,
    dominating,
    heaviest,
    name_tokens,
    nats,
    odd_tokens,
)

LOOK_BACK, SKIP = 20, 5
"""A surge is measured against this many earlier steps, without the latest few."""
SURGE_FROM = 10
"""Earlier steps that a surge needs."""


def spike(reading: Reading, limits: Thresholds) -> Finding | None:
    """k3 of this step is above its trend-following level (R1).

    Thresholds: `z` in scales of log k3, `ratio` and `critical_ratio` in multiples of the level,
    `rearm` in scales.
    """
    score = reading.score
    if score.z > limits["z"] and score.ratio > limits["ratio"]:
        return _risen(reading, limits)
    return SIMMERING if score.z > limits["rearm"] else None


def _risen(reading: Reading, limits: Thresholds) -> Finding:
    pair, score = reading.pair, reading.score
    expected = math.exp(score.level)
    tokens = heaviest(pair, "k3", dominating(pair, "k3"))
    rest = pair["k3/mean_without_top"]
    by_tokens = _carried(pair, limits["ratio"] * expected)
    critical = score.ratio >= limits["critical_ratio"] and not by_tokens
    message = (
        f"k3 rose to {nats(pair['k3/mean'])} per token, {score.ratio:.3g}x the "
        f"{nats(expected)} expected from the last steps (z = {score.z:.1f})"
    )
    if by_tokens:
        message += (
            f"; without {count(len(tokens), 'token')} it is {nats(rest)}, no spike: "
            f"{name_tokens(tokens)}"
        )
    elif tokens:
        message += f"; heaviest in k3: {name_tokens(tokens[:1])}"
    return Finding(
        level=CRITICAL if critical else WARN,
        severity="critical" if critical else "warn",
        message=message,
        values={
            "k3": pair["k3/mean"],
            "expected": expected,
            "ratio": score.ratio,
            "z": score.z,
            "k3_without_top": rest,
        },
        tokens=tokens,
        action=READ_TOKENS if by_tokens else "",
        means=odd_tokens(tokens) if by_tokens else "",
    )


def shift(reading: Reading, limits: Thresholds) -> Finding | None:
    """The level itself has moved: the median of the last five z is high (R2).

    Thresholds: `z` and `rearm` in scales of log k3, `critical_ratio` in multiples of the level.
    """
    score = reading.score
    if not score.z_recent > limits["z"]:
        return SIMMERING if score.z_recent > limits["rearm"] else None
    expected = math.exp(score.level)
    critical = score.ratio >= limits["critical_ratio"]
    return Finding(
        level=CRITICAL if critical else WARN,
        severity="critical" if critical else "warn",
        message=(
            f"k3 stays high: {nats(reading['k3/mean'])} per token now, {score.ratio:.3g}x the "
            f"{nats(expected)} expected; median z of the last five steps {score.z_recent:.1f}"
        ),
        values={
            "k3": reading["k3/mean"],
            "expected": expected,
            "ratio": score.ratio,
            "z_recent": score.z_recent,
        },
    )


def surge(reading: Reading, limits: Thresholds) -> Finding | None:
    """k3 is many times the largest of the steps before, also where no baseline exists yet.

    Thresholds: `ratio` in multiples of that largest, `nats` the smallest k3 that counts.
    """
    k3 = finite(reading["k3/mean"])
    earlier = reading.history[-LOOK_BACK:][:-SKIP]
    if reading.steps < SURGE_FROM or not k3 > limits["nats"]:
        return None
    if not reading.history.size:
        return _from_nothing(reading, k3)
    if not earlier.size:
        return None
    largest = math.exp(max(earlier.tolist()))
    threshold = limits["ratio"] * largest
    if not k3 > threshold:
        return SIMMERING if k3 > limits["rearm"] * threshold else None
    by_tokens = _carried(reading.pair, threshold)
    tokens = heaviest(reading.pair, "k3", dominating(reading.pair, "k3"))
    message = (
        f"k3 surged to {nats(k3)} per token, {k3 / largest:.3g}x the largest of the "
        f"{earlier.size} steps before ({nats(largest)})"
    )
    if by_tokens:
        rest = reading["k3/mean_without_top"]
        message += f"; without {count(len(tokens), 'token')} it is {nats(rest)}, no surge"
    return Finding(
        level=WARN if by_tokens else CRITICAL,
        severity="warn" if by_tokens else "critical",
        message=message,
        values={"k3": k3, "largest_before": largest, "ratio": k3 / largest},
        tokens=tokens,
        action=READ_TOKENS if by_tokens else "",
        means=odd_tokens(tokens) if by_tokens else "",
    )


def _from_nothing(reading: Reading, k3: float) -> Finding:
    """The first KL of a run whose policies had been equal to the last bit."""
    return Finding(
        level=CRITICAL,
        severity="critical",
        message=(
            f"k3 surged to {nats(k3)} per token from exactly 0 in all {reading.steps} steps before"
        ),
        values={"k3": k3, "largest_before": 0.0},
        tokens=heaviest(reading.pair, "k3", dominating(reading.pair, "k3")),
    )


def _carried(pair: PairReport, threshold: float) -> bool:
    """Whether k3 is above a threshold only because of the few tokens that dominate it."""
    return pair["dominance/k3/level"] >= 1 and pair["k3/mean_without_top"] <= threshold


LOOK_FIRST = (
    "look at this step's samples and reward: was there a jump of the learning rate, a bad batch, "
    "a stale or mismatched sampler? If it persists, lower the learning rate, raise the KL "
    "coefficient, or go back to the checkpoint before it"
)

SPIKE = Rule(
    kind="spike",
    judge=spike,
    thresholds={"z": 4.7, "ratio": 1.5, "critical_ratio": 8.0, "rearm": 2.0},
    means=("the policy moved far from p in one update, or this batch holds unusual samples"),
    action=LOOK_FIRST,
    source="docs/alerts.md#spike: robust z of log k3 against a trend-following median",
    withholds=(K3_LEVEL,),
    cooldown=20,
)
SHIFT = Rule(
    kind="shift",
    judge=shift,
    thresholds={"z": 3.3, "critical_ratio": 8.0, "rearm": 2.0},
    means=(
        "an update that was too large and was not taken back, or a change of data, "
        "temperature or sampler"
    ),
    action=LOOK_FIRST,
    source="docs/alerts.md#shift: median of five robust z of log k3",
)
SURGE = Rule(
    kind="surge",
    judge=surge,
    thresholds={"ratio": 10.0, "nats": 0.05, "rearm": 0.5},
    means=(
        "an update broke the policy: a jump of the learning rate, an exploding "
        "gradient, a wrong checkpoint"
    ),
    action="stop or pause the run before the next checkpoint is overwritten; " + LOOK_FIRST,
    source="docs/alerts.md#surge: multiple of the largest k3 of the steps before",
    withholds=(K3_LEVEL,),
)
