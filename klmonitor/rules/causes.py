"""Input that cannot be, and causes that are known: said once, whatever the level of KL."""

from __future__ import annotations

from klmonitor.numbers.causes import is_told
from klmonitor.rules.rule import Finding, Rule, Thresholds
from klmonitor.rules.track import Reading

NO_ENGINE = "a policy's log-probs are not those that the tokens were drawn with"
MEND_FIRST = "mend the named cause; no number of this pair means anything until then"


def impossible(reading: Reading, limits: Thresholds) -> Finding | None:
    """A policy's log-probs cannot be log-probs of these tokens.

    Thresholds: `tokens`, the fewest that count.
    """
    pair = reading.pair
    if not pair.impossible or pair.tokens < limits["tokens"]:
        return None
    return Finding(message=pair.cause.text).critical_if(True)


def known_cause(reading: Reading, limits: Thresholds) -> Finding | None:
    """Trainer and engine disagree, and the signatures say why (docs/causes.md).

    Thresholds: `tokens`, the fewest that count.
    """
    pair = reading.pair
    if pair.waits or pair.impossible or pair.tokens < limits["tokens"]:
        return None
    cause, mismatch = pair.cause, pair.name.startswith("rollout_")
    if not cause.name or not is_told(mismatch, cause.name):
        return None
    if mismatch:
        return Finding(message=cause.text)
    return Finding(message=cause.text, means=NO_ENGINE, action=MEND_FIRST)


IMPOSSIBLE = Rule(
    judge=impossible,
    thresholds={"tokens": 1},
    means="a tensor that is not what it is called, a placeholder or padding that the mask lets in",
    action=(
        "print the log-probs of the named token under both policies and mend where they are made "
        "or masked; no number of this pair means anything until then"
    ),
    source="docs/alerts.md#impossible: counts of the step, never averaged",
    cooldown=1000,
    calm_for=5,
)
CAUSE = Rule(
    kind="cause",
    judge=known_cause,
    thresholds={"tokens": 64},
    means="trainer and engine do not compute, or sample, the same policy",
    action="mend the named cause; then the mismatch should fall to the engine's floor",
    source="docs/alerts.md#cause: signatures of the last five steps, rates in docs/causes.md",
    cooldown=1000,
    calm_for=10,
)
