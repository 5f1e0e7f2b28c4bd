"""k1 on its own: far from its level in either direction, or negative for too long.

k1 is unbiased and signed: at small KL a single step's mean is negative almost every other time,
so only far excursions and long stretches say anything.
"""

from __future__ import annotations

import math

import numpy as np

from klmonitor.numbers.student import deviate_of_t
from klmonitor.rules.rule import SIMMERING, Finding, Rule, Thresholds
from klmonitor.rules.track import SIGNED, Reading
from klmonitor.rules.words import dominating, heaviest, name_tokens, nats, not_draws

TOGETHER = 5
"""Steps whose sequences are pooled."""
AUTOCORRELATION = 2.0
"""Variance of a mean over correlated steps, as a multiple of independent ones'."""


def k1_excursion(reading: Reading, limits: Thresholds) -> Finding | None:
    """k1 is far from its level, up or down, further than k3 is from its own (R6).

    Thresholds: `z` and `rearm` in scales, `sequences`, the fewest whose mean is judged.
    """
    score = reading.k1
    if not abs(score.z) > limits["z"] or reading["sequences"] < limits["sequences"]:
        return SIMMERING if abs(score.z) > limits["rearm"] else None
    tokens = heaviest(reading.pair, "k1", dominating(reading.pair, "k1"))
    message = (
        f"k1 = {nats(score.value)} per token is {abs(score.z):.1f} scales "
        f"{'above' if score.z > 0 else 'below'} its level of {nats(score.centre)}; k3 = "
        f"{nats(reading['k3/mean'])} did not move as far"
    )
    if tokens:
        message += f"; largest |d|: {name_tokens(tokens[:1])}"
    return Finding(
        message=message,
        values={
            "k1": score.value,
            "level": score.centre,
            "z": score.z,
            "k3": reading["k3/mean"],
        },
        tokens=tokens,
    )


def k1_negative(reading: Reading, limits: Thresholds) -> Finding | None:
    """The mean of k1 over the last 50 steps is significantly negative, which KL never is.

    Judged where q drew the tokens, or tokens as good: an engine's that rounds (elsewhere k1's mean
    may well be negative). A single step is enough where it is `at_once` errors below, by sequence,
    or the last five are together.
    Thresholds: `z`, `rearm` and `at_once`, standard errors below 0; `nats`, the least that a step
    must be below 0 to be enough.
    """
    if (found := _negative_at_once(reading, limits)) is not None:
        return found
    means, squares = reading.signs
    if means.size < SIGNED or math.isnan(reading.signed_mean):
        return None
    mean = sum(means.tolist()) / SIGNED
    if mean >= 0:
        return None
    between = AUTOCORRELATION * float(means.var()) / SIGNED
    error = math.sqrt(max(float(squares.mean()) / SIGNED, between))
    z = mean / error if error else -math.inf
    if not z < -limits["z"]:
        return SIMMERING if z < -limits["rearm"] else None
    negative = int(np.count_nonzero(means < 0))
    return Finding(
        message=(
            f"k1 averages {nats(mean)} per token over {SIGNED} steps, {z:.1f} standard errors "
            f"from 0 ({negative} of them negative); a KL divergence is never negative"
        ),
        values={"k1": mean, "z": z, "negative_steps": float(negative)},
        means=not_draws(reading, K1_NEGATIVE.means)[1],
    )


def _negative_at_once(reading: Reading, limits: Thresholds) -> Finding | None:
    """One step, or the last few together, whose k1 is so far below 0 that no more are needed."""
    error, now = reading.sign_error, reading.signed_mean
    if not (error > 0 and now < -limits["nats"]):
        return None
    weighted = " (importance-weighted)" if reading["on_policy"] == 0 else ""
    means, squares = (earlier[1 - TOGETHER :] for earlier in reading.signs)
    for steps in sorted({1, means.size + 1}):
        k1 = (sum(means[means.size + 1 - steps :].tolist()) + now) / steps
        spread = math.sqrt(sum(squares[squares.size + 1 - steps :].tolist()) + error**2) / steps
        z = deviate_of_t(k1 / spread, steps * (reading["sequences"] - 1))
        if z < -limits["at_once"] and k1 < -limits["nats"]:
            together = "" if steps == 1 else f" over {steps} steps"
            what, meant = not_draws(reading, K1_NEGATIVE.means)
            return Finding(
                message=(
                    f"k1 = {nats(k1)} per token{weighted}{together} is {-k1 / spread:.0f} "
                    f"standard errors below 0, which no KL is: {what}"
                ),
                values={"k1": k1, "z": z},
                means=meant,
            )
    return None


K1_EXCURSION = Rule(
    judge=k1_excursion,
    thresholds={"z": 8.0, "rearm": 4.0, "sequences": 30},
    means=("a group of tokens that p and q see very differently, or a batch unlike the others"),
    action="look at the tokens of largest |d| of this step, and whether the batch was a usual one",
    source="docs/alerts.md#k1: robust z of k1, two-sided",
    joins_story=True,
)
K1_NEGATIVE = Rule(
    judge=k1_negative,
    thresholds={"z": 4.0, "rearm": 2.0, "at_once": 6.0, "nats": 1e-3},
    means=(
        "the tokens were not drawn from q as it is scored: a stale or truncated sampler, a "
        "temperature that one side lacks, log-probs computed without the attention mask"
    ),
    action=(
        "compare the sampler's settings (temperature, top-p, top-k, weights' version) with those "
        "that the trainer's log-probs are computed with"
    ),
    source="docs/alerts.md#k1: mean of k1 over 50 steps against 0",
    cooldown=200,
    calm_for=10,
)
