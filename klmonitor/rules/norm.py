"""How large a KL is by itself, whatever it was before: the absolute norm, and a user's own limit.

A fault that is there from the first step is its own baseline, and no rule that compares with the
past can see it. Healthy runs keep a KL to the reference of .001 to .2 nats a token; .5 nats is a
policy that gives its tokens another e^.5 of probability on average, and 2 nats another model. The
engine that samples is to be the trainer itself, .001 nats and less.
"""

from __future__ import annotations

import math
from dataclasses import replace

from klmonitor.report import PairReport
from klmonitor.rules.rule import CRITICAL, SIMMERING, WARN, Finding, Rule, Thresholds
from klmonitor.rules.track import FIRST, Reading, finite, to_reference
from klmonitor.rules.words import LOOK_FIRST, nats

NO_UPDATE = (
    "it was so from the first step on, which no update made: another reference, base or adapter, "
    "another temperature, template or number format on one side, dropout that is active, or tokens "
    "that the mask should leave out"
)
COMPARE_SIDES = (
    "score the first step's tokens with both sides and compare token by token: model, adapter, "
    "temperature, prompt and mask; learning rate and KL coefficient do nothing about it"
)
"""Of a KL that was above its norm from the start: what it means, and what to do first."""
REARM = 0.8
"""An episode above a level ends below this share of it."""
STEPS = 3
"""Steps whose median, and whose smallest, is held against the norm."""


def limit(reading: Reading, limits: Thresholds) -> Finding | None:
    """k3 is above the norm of its pair, or above the user's own limit for it (R4).

    Thresholds, in nats per token: `warn`, which the median of three steps exceeds; `critical`,
    which three steps exceed, or with token data one of them in k1 or k3 without the tokens that
    dominate it; `alone`, which one step without token data exceeds; `rollout_info` and
    `rollout_warn`, likewise for pairs of the engine. The name of a pair is the user's own limit in
    its stead: critical at the first step above it.
    """
    own = limits.get(reading.pair.name)
    if own is not None:
        return _above_own(reading, own)
    if to_reference(reading.pair.name):
        found = _from_reference(reading, limits)
        if found is None or not found.level or not _from_the_start(reading, limits["warn"]):
            return found
        return replace(found, means=NO_UPDATE, action=COMPARE_SIDES)
    if reading.pair.name.startswith("rollout_"):
        return _from_engine(reading, limits)
    return None


def _from_the_start(reading: Reading, norm: float) -> bool:
    """Whether k3 was above a norm from the first step of the run on, before updates could move it.

    Not of a run that goes on from a checkpoint, whose first steps were others.
    """
    if reading.of_run("step_of_run") > reading.age:
        return False
    return min([*reading.first, finite(reading["k3/mean"])][:FIRST]) > norm


def _above_own(reading: Reading, most: float) -> Finding | None:
    k3 = finite(reading["k3/mean"])
    if not k3 > most:
        return SIMMERING if k3 > REARM * most else None
    return Finding(
        message=f"k3 = {nats(k3)} per token is above the limit of {nats(most)}",
        values={"k3": k3, "limit": most},
    ).critical_if(True)


def _from_reference(reading: Reading, limits: Thresholds) -> Finding | None:
    found = _at_once(reading, limits)
    if found:
        return found
    three = reading.last_three
    if len(three) < STEPS:
        return None
    middle, least = sorted(three)[1], min(three)
    if not middle > limits["warn"] or _of_few_tokens(reading, limits["warn"]):
        return SIMMERING if middle > REARM * limits["warn"] else None
    if least > limits["critical"]:
        return _critical(
            f"k3 is {nats(three[-1])} per token, in three steps above {nats(least)}: the norm is "
            f"{nats(limits['critical'])}",
            {"k3": three[-1], "least": least, "norm": limits["critical"]},
        )
    return Finding(
        message=(
            f"k3 is {nats(middle)} per token (median of three steps), above the norm of "
            f"{nats(limits['warn'])}"
        ),
        values={"k3": middle, "norm": limits["warn"]},
    )


def _at_once(reading: Reading, limits: Thresholds) -> Finding | None:
    """What a single step is enough for."""
    pair = reading.pair
    if math.isnan(pair["tokens"]):
        k3 = pair["k3/mean"]
        if not limits["alone"] < k3 < math.inf:
            return None
        return _critical(
            f"k3 is {nats(k3)} per token; without token data a single step counts from "
            f"{nats(limits['alone'])}",
            {"k3": k3, "norm": limits["alone"]},
        )
    for name in ("k1", "k3"):
        value, dominated = without_tokens(pair, name)
        if limits["critical"] < value < math.inf:
            tokens = ", without the tokens that dominate it," if dominated else ""
            return _critical(
                f"{name}{tokens} is {nats(value)} per token: the norm is "
                f"{nats(limits['critical'])}",
                {name: value, "norm": limits["critical"]},
            )
    return None


def _critical(message: str, values: dict[str, float]) -> Finding:
    return Finding(message=message, values=values).critical_if(True)


def without_tokens(pair: PairReport, estimator: str) -> tuple[float, bool]:
    """An estimate, without the tokens that dominate it if any do, and whether any do."""
    dominated = pair[f"dominance/{estimator}/level"] >= 1
    rest = pair[f"{estimator}/mean_without_top"] if dominated else math.nan
    return (pair[f"{estimator}/mean"], False) if math.isnan(rest) else (rest, True)


def _of_few_tokens(reading: Reading, norm: float) -> bool:
    """Whether k3 is within a norm but for the tokens that dominate it, which is told as that."""
    rest, dominated = without_tokens(reading.pair, "k3")
    return dominated and rest <= norm


def _from_engine(reading: Reading, limits: Thresholds) -> Finding | None:
    three = reading.last_three
    if len(three) < STEPS:
        return None
    middle = sorted(three)[1]
    if not middle > limits["rollout_info"] or _of_few_tokens(reading, limits["rollout_info"]):
        return SIMMERING if middle > REARM * limits["rollout_info"] else None
    warn = middle > limits["rollout_warn"]
    norm = limits["rollout_warn" if warn else "rollout_info"]
    return Finding(
        level=CRITICAL if warn else WARN,
        severity="warn" if warn else "info",
        message=(
            f"k3 is {nats(middle)} per token (median of three steps), above the {nats(norm)} that "
            "an engine may differ from the trainer by"
        ),
        values={"k3": middle, "norm": norm},
        means=(
            "the engine computes in fewer bits (fp8, int4), samples with weights of several "
            "updates ago, or samples otherwise than it reports (temperature, top-p, another "
            "template)"
        ),
        action=(
            "compare the engine's settings with the trainer's; if both are meant so, correct with "
            "truncated importance weights, and set rollout_info and rollout_warn to what it costs"
        ),
    )


LIMIT = Rule(
    judge=limit,
    thresholds={
        "warn": 0.5,
        "critical": 2.0,
        "alone": 20.0,
        "rollout_info": 0.01,
        "rollout_warn": 0.05,
    },
    means=(
        "the policy is far from the reference: a learning rate too high, a KL term that is "
        "missing or has the wrong sign, another reference than the run started from, or dropout "
        "that is active on one side"
    ),
    action=LOOK_FIRST,
    source="docs/alerts.md#limit: an absolute norm, or set by you",
    per_pair=True,
    calm_for=3,
    joins_story=True,
    lasting=True,
)
