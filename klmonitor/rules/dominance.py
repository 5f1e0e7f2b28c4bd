"""A few tokens carry an estimate: say which, how much, and which estimator to believe instead.

k1 = -d suffers from the left tail of d, k3 = expm1(d) - d from the right, and each estimator is
judged on its own. Dominance means that an estimate misleads, not that the policy is in danger, so
it is never critical; level 2 (severe) is announced after level 1 (warn).
"""

from __future__ import annotations

from klmonitor.rules.rule import SIMMERING, Finding, Rule, Thresholds
from klmonitor.rules.track import Reading
from klmonitor.rules.words import believe, count, dominating, heaviest, name_tokens, nats


def dominance(reading: Reading, limits: Thresholds, estimator: str) -> Finding | None:
    """A few tokens dominate the mean of `estimator` at this step.

    Thresholds: `level`, the smallest dominance level (1 warn, 2 severe) that alerts.
    """
    pair = reading.pair
    level = pair[f"dominance/{estimator}/level"]
    if not level >= limits["level"]:
        return SIMMERING if level >= 1 else None
    tokens = heaviest(pair, estimator, dominating(pair.tokens))
    share = pair[f"dominance/{estimator}/top_share"]
    mean, rest = pair[f"{estimator}/mean"], pair[f"{estimator}/mean_without_top"]
    total = "|k1|" if estimator == "k1" else "k3"
    named = count(dominating(pair.tokens), "token")
    message = (
        f"{estimator} is dominated by {named} of {pair.tokens:.0f}, {100 * share:.3g} % of the "
        f"sum of {total}: mean {nats(mean)} per token with, {nats(rest)} without"
    )
    if tokens:
        message += f"; {name_tokens(tokens)}"
    return Finding(
        level=int(level),
        severity="warn",
        message=message,
        believe=believe(pair),
        values={
            "mean": mean,
            "mean_without": rest,
            "top_share": share,
            "v": pair[f"dominance/{estimator}/v"],
            "j": pair[f"dominance/{estimator}/j"],
        },
        tokens=tokens,
    )


def dominance_k1(reading: Reading, limits: Thresholds) -> Finding | None:
    """`dominance` of k1."""
    return dominance(reading, limits, "k1")


def dominance_k3(reading: Reading, limits: Thresholds) -> Finding | None:
    """`dominance` of k3."""
    return dominance(reading, limits, "k3")


READ_TOKENS = (
    "look at the named tokens: padding or a tool's output that the mask lets through, a token that "
    "the sampler cut (top-p, top-k), a number format that differs; if they are real, trust the "
    "other estimator for this step"
)

DOMINANCE_K1 = Rule(
    kind="dominance_k1",
    judge=dominance_k1,
    thresholds={"level": 1.0},
    action=READ_TOKENS,
    source="docs/alerts.md#dominance: share of k1's variance and jackknife of the top tokens",
)
DOMINANCE_K3 = Rule(
    kind="dominance_k3",
    judge=dominance_k3,
    thresholds={"level": 1.0},
    action=READ_TOKENS,
    source="docs/alerts.md#dominance: share of the sum of k3 of the top tokens",
)
