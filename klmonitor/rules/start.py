"""What is wrong from the first step on: a KL before there was an update, none after ten, beta < 0.

These rest on what is certain (counts, bit-equal numbers, settings) where the run's values are
known (`klmonitor.numbers.runvalues`), and else say on what they rest.
"""

from __future__ import annotations

import math

from klmonitor.numbers.receiptwords import told
from klmonitor.rules.norm import without_tokens
from klmonitor.rules.rule import WARN, Finding, Rule, Thresholds
from klmonitor.rules.track import FIRST, Reading, to_reference
from klmonitor.rules.window import median, middle
from klmonitor.rules.words import dropout, nats

LOW_BITS = 19
"""Bits of TensorFloat-32, whose mantissa is no longer than float16's."""
ERRORS = 3.0
"""Standard errors that are taken off a k3 that should be 0."""
SETTLED = 20
"""Steps after which the first ones are compared with the level, where updates are not counted."""


def nonzero_start(reading: Reading, limits: Thresholds) -> Finding | None:
    """KL to the reference is not 0 before the first update, which it is by construction.

    Before the first optimizer step of a run that is not resumed (``run/step_of_run`` = 0) that is
    certain; not of the policy's own numbers where the step holds several updates. Where the steps
    are not counted, a run whose level after 20 steps was there from its first step on is told as
    information.
    Thresholds, nats: `nats`, and `nats_16_bits` where a side has 16 bits or fewer, or may have;
    `level`, for a run whose updates are not counted.
    """
    pair = reading.pair
    if not to_reference(pair.name):
        return None
    if math.isnan(reading.of_run("step_of_run")):
        return _from_the_beginning(reading, limits)
    several = pair.name.startswith("policy_") and reading.of_run("updates") > 1
    if reading.of_run("step_of_run") != 0 or several:
        return None
    se = 0.0 if math.isnan(pair["k3/se"]) else pair["k3/se"]
    low = pair["low_precision"] == 1 or not reading.of_run("bits") > LOW_BITS
    floor = limits["nats_16_bits" if low else "nats"]
    if not floor < pair["k3/mean"] - ERRORS * se < math.inf:
        return None
    message = f"k3 is {nats(pair['k3/mean'])} per token before the first update, where it is 0"
    aside = "this is before the first update, where it is 0"
    values = {"k3": pair["k3/mean"], "se": se, "floor": floor}
    if (noise := dropout(reading)) is None:
        return Finding(message=message, aside=aside, values=values)
    return Finding(
        message=f"{message}; {noise}",
        aside=f"{aside}; {noise}",
        values={**values, "dropout": reading.of_run("dropout")},
        means=(
            "the policy's log-probs are those of a network with units left out at random: this "
            "KL is noise, as far as no other cause is there (a quantised base, adapters that "
            "start trained, another checkpoint)"
        ),
        action=(
            "switch dropout off in training, as RL trainers have an option for (TRL: "
            "disable_dropout=True, and lora_dropout=0), and look whether KL then starts at 0"
        ),
    )


def _from_the_beginning(reading: Reading, limits: Thresholds) -> Finding | None:
    if reading.age != SETTLED or math.isnan(reading["tokens"]) or len(reading.first) < FIRST:
        return None
    first, now = middle(sorted(reading.first)), median(reading.latest[-SETTLED // 2 :])
    at_large, _ = without_tokens(reading.pair, "k3")
    if at_large <= limits["level"] or not (first > limits["level"] and first > now / 2):
        return None
    return Finding(
        level=WARN,
        severity="info",
        message=(
            f"k3 was {nats(first)} per token in the first three steps and is {nats(now)} after "
            f"{SETTLED}: a run that starts from its reference starts at 0"
        ),
        values={"first": first, "k3": now},
    )


def identical(reading: Reading, limits: Thresholds) -> Finding | None:
    """Policy and reference give the very same numbers, though there were updates.

    Updates with a learning rate of 0 do not count.
    Thresholds: `updates`.
    """
    if not (to_reference(reading.pair.name) and reading.alike >= limits["updates"]):
        return None
    return Finding(
        message=(
            f"both sides gave the very same log-probs over {reading.alike:.0f} updates: every KL "
            "between them is 0"
        ),
        values={"updates": reading.alike},
    )


def negative_penalty(reading: Reading, limits: Thresholds) -> Finding | None:
    """The KL term pushes the policy away from the reference: beta, or what is paid, is negative.

    Thresholds: `z`, standard errors below 0 of a penalty whose beta is not known, where the KL
    that it is made of is above 0.
    """
    if not to_reference(reading.pair.name):
        return None
    beta, pair = reading.of_run("beta"), reading.pair
    paid, se = pair["penalty/mean"], pair["penalty/se"]
    error = 0.0 if math.isnan(se) else se
    if beta < 0:
        message = f"beta is {beta:g}: the KL term rewards distance from the reference"
        if abs(paid) > 0:
            message += f"; it pays {nats(paid)} per token"
        if pair.penalty:
            message += f"; it is {told(pair)}"
        return Finding(message=message, values={"beta": beta, "penalty": paid})
    unknown = math.isnan(beta) and paid < -limits["z"] * error and paid < 0
    if not (unknown and pair["k1/mean"] > 0 and pair["k3/mean"] > 0):
        return None
    return Finding(
        message=(
            f"the KL penalty is {nats(paid)} per token, below 0, while k1 = "
            f"{nats(pair['k1/mean'])}: it rewards distance from the reference"
        ),
        values={"penalty": paid, "k1": pair["k1/mean"]},
    )


NONZERO_START = Rule(
    judge=nonzero_start,
    thresholds={"nats": 1e-6, "nats_16_bits": 1e-3, "level": 0.05},
    means=(
        "the reference is not what training started from: a quantised base, adapters that start "
        "trained, dropout that is active on one side, another checkpoint"
    ),
    action=(
        "compare the two sides' weights and modes (eval, dropout, adapters, number format) before "
        "the first update; the KL term pulls towards the reference that is loaded"
    ),
    source="docs/alerts.md#start: KL before the first update",
    cooldown=10_000,
    joins_story=True,
    lasting=True,
    explains=True,
)
IDENTICAL = Rule(
    judge=identical,
    thresholds={"updates": 10},
    means=(
        "the reference is the policy itself (one model object on both sides), or no update reaches "
        "the weights (frozen parameters, adapters that are off, a gradient of 0)"
    ),
    action="see that ref is another model object, and that a parameter changes in an update",
    source="docs/alerts.md#start: bit-equal numbers over ten updates",
    cooldown=1000,
)
NEGATIVE_PENALTY = Rule(
    judge=negative_penalty,
    thresholds={"z": 3.0},
    means="a sign that is wrong in beta or in the loss: KL is maximised",
    action="make beta positive, or see with which sign the KL enters loss and reward",
    source="docs/alerts.md#start: sign of the penalty",
    cooldown=1000,
)
