"""What falls: KL to nothing, tokens and lengths to a tenth."""

from __future__ import annotations

import math

import numpy as np

from klmonitor.rules.flat import FlatScore
from klmonitor.rules.norm import STEPS
from klmonitor.rules.rule import SIMMERING, Finding, Rule, Thresholds
from klmonitor.rules.track import START, Reading
from klmonitor.rules.window import Floats, middle
from klmonitor.rules.words import FALLEN, nats, plain

BEFORE = 10
"""Steps that what fell must have stood."""
LASTING = 5
"""Low steps in a row that are a fall also where single ones are the run's habit."""


def fall(reading: Reading, limits: Thresholds) -> Finding | None:
    """k3 has fallen to a hundredth of what it was, or to exactly 0 (median of three steps).

    A new start: what comes after is not compared with what was before. A reference that was set
    anew on purpose (``run/reference_sync``) is one as well, and is not told.
    A series with negative numbers is no k3, and its zeros say nothing. Where a step was as low
    before, once KL stood, five in a row are needed: a batch that was skipped is logged as 0.
    Thresholds: `share` of the median of the steps before.
    """
    before = reading.latest[: 1 - STEPS]
    three, ordered = sorted(reading.last_three), sorted(before.tolist())
    if before.size < BEFORE or len(three) < STEPS or min(three[0], ordered[0]) < 0:
        return None
    usual, now = middle(ordered), middle(three)
    low = limits["share"] * usual - reading.unit / 2
    if not usual > 0 or now > low:
        return None
    if not (_never(before, low) or _all(reading, low)):
        return SIMMERING
    amount = "exactly 0" if now == 0 else f"{nats(now)} per token, {now / usual:.2g}x"
    link = ", from" if now == 0 else " of"
    return Finding(
        message=(
            f"k3 has fallen to {amount}{link} the {nats(usual)} that were usual (medians of three "
            f"steps and of the {before.size} before)"
        ),
        values={"k3": now, "usual": usual},
    )


def _never(before: Floats, low: float) -> bool:
    """Whether no step was as low once KL stood: a start-up begins low."""
    stood = before[int(np.argmax(before > low)) :]
    return bool((stood > low).all())


def _all(reading: Reading, low: float) -> bool:
    """Whether the last five steps are all as low."""
    last = [*reading.latest[1 - LASTING : 1 - STEPS].tolist(), *reading.last_three]
    return len(last) == LASTING and max(last) <= low


def token_drop(reading: Reading, limits: Thresholds) -> Finding | None:
    """The tokens of a step, or the mean length of its sequences, have fallen to a tenth.

    Thresholds: `share` of what is usual (median of the last 100 steps without five); `z`, how many
    of its own scales the logarithm must be below it; `rearm`, the share below which an episode
    stays open.
    """
    parts, values, simmering = [], {}, False
    for name, score in (("tokens", reading.tokens), ("tokens per sequence", reading.length)):
        depth = score.centre - score.value
        simmering = simmering or depth > -math.log(limits["rearm"])
        if depth >= -math.log(limits["share"]) and score.z < -limits["z"]:
            parts.append(_fallen(name, score))
            values[name.replace(" ", "_")] = math.exp(score.value)
    if not parts:
        return SIMMERING if simmering else None
    return Finding(message="; ".join(parts), values=values)


def _fallen(name: str, score: FlatScore) -> str:
    return f"{plain(math.exp(score.value))} {name} where {plain(math.exp(score.centre))} are usual"


FALL = Rule(
    judge=fall,
    thresholds={"share": 0.01},
    means=(
        "the reference is the policy itself: it was loaded anew from the policy's weights (a "
        "resume, a sync), or an adapter is off on both sides"
    ),
    action="look which weights the reference holds; the KL term pulls towards these from now on",
    source="docs/alerts.md#fall: median of three steps against the median before",
    cooldown=0,
    withholds=(START,),
    elsewhere=FALLEN,
)
TOKEN_DROP = Rule(
    judge=token_drop,
    thresholds={"share": 0.1, "z": 4.7, "rearm": 0.5},
    means=(
        "a mask that lets little through (truncated completions, a template that changed), or "
        "answers that have become short"
    ),
    action="look at the completions and the mask of this step; its KL is that of few tokens",
    source="docs/alerts.md#token-drop: logarithm of a count against its own median",
    calm_for=3,
)
