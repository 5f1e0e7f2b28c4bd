"""Sudden rises of k3: one step far above its level, a level that has moved, a surge at start-up.

All three look at log k3, where one threshold serves every noise regime, and are one-sided: what
falls is told by the rules of `klmonitor.rules.falls`.
"""

from __future__ import annotations

import math

from klmonitor.report import PairReport
from klmonitor.rules.rule import SIMMERING, Finding, Rule, Thresholds
from klmonitor.rules.track import JUMP, PAST, Reading, finite
from klmonitor.rules.words import (
    LOOK_FIRST,
    MOVED,
    READ_TOKENS,
    count,
    dominating,
    heaviest,
    name_tokens,
    nats,
    odd_tokens,
    plain,
)

LOOK_BACK, LATEST = 20, 5
"""A surge is measured against the largest of this many earlier steps; in a critical one the latest
few are told apart, since it may have taken two steps."""
EARLY = 40
"""Steps in which the level of a pair is hardly known, so that `ratio` is enough for a surge."""
SURGE_FROM = 10
"""Earlier steps that a surge needs."""
UNUSUAL = "the policy moved far from p in one update, or this batch holds unusual samples"


def spike(reading: Reading, limits: Thresholds) -> Finding | None:
    """k3 of this step is above its level (R1).

    Thresholds: `z` in scales of log k3, `ratio` and `critical_ratio` in multiples of the level (or
    of the median of the 25 steps before the last seven, if that is higher: what comes back has not
    risen), `critical_nats` the smallest k3 that is critical, `rearm` in scales.
    """
    score = reading.score
    if score.z > limits["z"] and score.risen > limits["ratio"]:
        return _risen(reading, limits)
    return SIMMERING if score.z > limits["rearm"] else None


def _risen(reading: Reading, limits: Thresholds) -> Finding:
    pair, score = reading.pair, reading.score
    k3, expected = pair["k3/mean"], math.exp(score.level)
    tokens = heaviest(pair, "k3", dominating(pair, "k3"))
    rest = pair["k3/mean_without_top"]
    by_tokens = _carried(pair, limits["ratio"] * expected)
    much = score.risen >= limits["critical_ratio"] and k3 >= limits["critical_nats"]
    critical = much and not by_tokens
    message = (
        f"k3 rose to {nats(k3)} per token, {plain(score.ratio)}x the "
        f"{nats(expected)} expected from the last steps (z = {score.z:.1f})"
    )
    if by_tokens:
        message += (
            f"; without {count(dominating(pair, 'k3'), 'token')} it is {nats(rest)}, no spike"
        )
        message += f": {name_tokens(tokens)}" if tokens else ""
    elif tokens:
        message += f"; heaviest in k3: {name_tokens(tokens[:1])}"
    return Finding(
        message=message,
        base=expected,
        values={
            "k3": k3,
            "expected": expected,
            "ratio": score.ratio,
            "z": score.z,
            "k3_without_top": rest,
        },
        tokens=tokens,
        action=READ_TOKENS if by_tokens else "",
        means=odd_tokens(tokens) if by_tokens else "",
    ).critical_if(critical)


def shift(reading: Reading, limits: Thresholds) -> Finding | None:
    """The level itself has moved: the median of seven steps against that of 25 before (R2).

    Thresholds: `z` and `rearm` in scales of what medians of seven do in this run; `ratio` and
    `critical_ratio` in multiples of the level before, `critical_nats` the smallest level now that
    is critical.
    """
    score = reading.score
    if not (score.z_moved > limits["z"] and score.moved > limits["ratio"]):
        return SIMMERING if score.z_moved > limits["rearm"] else None
    now, before = math.exp(score.now), math.exp(score.before)
    critical = score.moved >= limits["critical_ratio"] and now >= limits["critical_nats"]
    return Finding(
        message=(
            f"the level of k3 has moved to {nats(now)} per token (median of seven steps), "
            f"{plain(score.moved)}x the {nats(before)} of the 25 steps before them "
            f"(z = {score.z_moved:.1f})"
        ),
        base=before,
        values={
            "k3": now,
            "expected": before,
            "ratio": score.moved,
            "z_moved": score.z_moved,
        },
    ).critical_if(critical)


def surge(reading: Reading, limits: Thresholds) -> Finding | None:
    """k3 is several times all that came before, also where no level exists yet.

    A series with negative numbers is no k3, and its logarithms say nothing.
    Thresholds: `ratio` in multiples of the largest of the last 20 steps, which keeps an ordinary
    start-up out; after a pair's first 40 steps, when its level is known, `critical_ratio` of those
    before the latest five. Critical from `critical_ratio` of all 20, or from `critical_nats` on of
    those before the latest five, as it may take two steps. `nats`, the smallest k3 that counts;
    `rearm`, a share of the threshold.
    """
    k3 = finite(reading["k3/mean"])
    if reading.steps < SURGE_FROM or not k3 > limits["nats"]:
        return None
    known, seen = reading.latest.tolist(), reading.seen[-LOOK_BACK:].tolist()
    if min(known, default=0) < 0:
        return None
    if not seen:
        return _from_nothing(reading, k3) if len(known) >= SURGE_FROM else None
    earlier, latest = seen[:-LATEST], seen[-LATEST:]
    if not earlier:
        return None
    before, last = math.exp(max(earlier)), math.exp(max(latest))
    few, many = limits["ratio"], limits["critical_ratio"]
    threshold = max(few * last, (few if reading.steps < EARLY else many) * before)
    if not k3 > threshold:
        return SIMMERING if k3 > limits["rearm"] * threshold else None
    by_tokens = _carried(reading.pair, threshold)
    tokens = heaviest(reading.pair, "k3", dominating(reading.pair, "k3"))
    aside = (
        f"{plain(k3 / last)}x the largest of the latest {len(latest)} steps ({nats(last)}) and "
        f"{plain(k3 / before)}x that of the {len(earlier)} before them ({nats(before)})"
    )
    message = f"k3 surged to {nats(k3)} per token, {aside}"
    if by_tokens:
        rest = reading["k3/mean_without_top"]
        named = count(dominating(reading.pair, "k3"), "token")
        message += f"; without {named} it is {nats(rest)}, no surge"
    much = k3 > many * before and (k3 > many * last or k3 >= limits["critical_nats"])
    critical, elsewhere = much and not by_tokens, reading.pair.name in MOVED
    return Finding(
        message=message,
        aside=aside,
        base=last,
        values={
            "k3": k3,
            "largest_before": before,
            "largest_latest": last,
            "ratio": k3 / before,
        },
        tokens=tokens,
        action=READ_TOKENS if by_tokens else "" if critical or elsewhere else LOOK_FIRST,
        means=odd_tokens(tokens) if by_tokens else "" if critical or elsewhere else UNUSUAL,
    ).critical_if(critical)


def _from_nothing(reading: Reading, k3: float) -> Finding:
    """The first KL of a run whose policies had been equal to the last bit."""
    return Finding(
        message=(
            f"k3 surged to {nats(k3)} per token from exactly 0 in the last {reading.latest.size} "
            "steps that had one"
        ),
        values={"k3": k3, "largest_before": 0.0},
        tokens=heaviest(reading.pair, "k3", dominating(reading.pair, "k3")),
    ).critical_if(True)


def _carried(pair: PairReport, threshold: float) -> bool:
    """Whether k3 is above a threshold only because of the few tokens that dominate it."""
    return pair["dominance/k3/level"] >= 1 and pair["k3/mean_without_top"] <= threshold


SPIKE = Rule(
    judge=spike,
    thresholds={
        "z": 4.4,
        "ratio": 1.8,
        "critical_ratio": 8.0,
        "critical_nats": 0.02,
        "rearm": 2.0,
    },
    means=UNUSUAL,
    action=LOOK_FIRST,
    source="docs/alerts.md#spike: robust z of log k3 against the median of the steps before",
    withholds=(JUMP,),
    joins_story=True,
    elsewhere=MOVED,
    cooldown=3,
)
SHIFT = Rule(
    judge=shift,
    thresholds={
        "z": 4.8,
        "ratio": 1.3,
        "critical_ratio": 8.0,
        "critical_nats": 0.02,
        "rearm": 2.0,
    },
    means=(
        "an update that was too large and was not taken back, or a change of data, "
        "temperature or sampler"
    ),
    action=LOOK_FIRST,
    source="docs/alerts.md#shift: medians of seven steps against their own past",
    withholds=(PAST,),
    joins_story=True,
    elsewhere=MOVED,
)
SURGE = Rule(
    judge=surge,
    thresholds={
        "ratio": 4.0,
        "critical_ratio": 10.0,
        "nats": 0.05,
        "critical_nats": 0.5,
        "rearm": 0.5,
    },
    means=(
        "an update broke the policy: a jump of the learning rate, an exploding "
        "gradient, a wrong checkpoint"
    ),
    action="stop or pause the run before the next checkpoint is overwritten; " + LOOK_FIRST,
    source="docs/alerts.md#surge: multiple of the largest k3 of the steps before",
    withholds=(JUMP,),
    joins_story=True,
    elsewhere=MOVED,
)
