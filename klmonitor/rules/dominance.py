"""A few tokens carry an estimate: say which, and how much.

k1 = -d suffers from the left tail of d, k3 = expm1(d) - d from the right, and each estimator is
judged on its own. The step's level (0, 1 warn, 2 severe) is measured elsewhere
(`klmonitor.numbers.dominance`) and is right about the step: but on heavy-tailed families every
second batch is dominated, and news it is not. So an alert asks for a severe level that also stands
out from the run's own habit, the largest |J| of the last 100 steps.

Dominance means that an estimate misleads, not that the policy is in danger: it is never critical,
so that nothing that acts on critical alerts stops a run for one odd token. What it does to another
verdict is said there (a spike that is gone without its tokens says so and is a mere warning).
"""

from __future__ import annotations

from klmonitor.rules.rule import CRITICAL, SIMMERING, WARN, Finding, Rule, Thresholds
from klmonitor.rules.track import HABIT_K1, HABIT_K3, Reading
from klmonitor.rules.words import (
    LEFT_TAIL,
    READ_TOKENS,
    RIGHT_TAIL,
    count,
    dominating,
    heaviest,
    name_tokens,
    nats,
    odd_tokens,
)


def dominance(reading: Reading, limits: Thresholds, estimator: str) -> Finding | None:
    """A few tokens dominate the mean of `estimator` at this step, unlike in the steps before.

    Thresholds: `level`, the smallest dominance level that alerts; `j`, the smallest |J| (how far
    the tokens move the mean, in standard errors of the rest); `own`, in multiples of the largest
    |J| of the last 100 steps; `size`, nats, the smallest |d| of the largest of the tokens, where
    they are known: of a policy that is sure of nearly all of them a d of .01 is much of its KL, and
    nothing that a token could be asked about.
    """
    pair = reading.pair
    level, j = pair[f"dominance/{estimator}/level"], abs(pair[f"dominance/{estimator}/j"])
    if not level >= 1:
        return None
    unusual = j > limits["own"] * reading.habit(estimator)
    if not (level >= limits["level"] and j >= limits["j"] and unusual):
        return SIMMERING
    tokens = heaviest(pair, estimator, dominating(pair, estimator))
    if tokens and max(abs(token.log_ratio) for token in tokens) < limits["size"]:
        return SIMMERING
    share = pair[f"dominance/{estimator}/top_share"]
    mean, rest = pair[f"{estimator}/mean"], pair[f"{estimator}/mean_without_top"]
    total = "|k1|" if estimator == "k1" else "k3"
    named = count(dominating(pair, estimator), "token")
    message = (
        f"{estimator} is dominated by {named} of {pair.tokens:.0f}, {100 * share:.3g} % of the "
        f"sum of {total}: mean {nats(mean)} per token with, {nats(rest)} without"
    )
    if tokens:
        message += f"; {name_tokens(tokens)}"
    return Finding(
        level=CRITICAL if level >= 2 else WARN,
        message=message,
        values={
            "mean": mean,
            "mean_without": rest,
            "top_share": share,
            "v": pair[f"dominance/{estimator}/v"],
            "j": pair[f"dominance/{estimator}/j"],
        },
        tokens=tokens,
        means=odd_tokens(tokens),
    )


def _rule(estimator: str, j: float, own: float, means: str, habit: str, source: str) -> Rule:
    """The rule of one estimator."""

    def judge(reading: Reading, limits: Thresholds) -> Finding | None:
        return dominance(reading, limits, estimator)

    return Rule(
        judge=judge,
        kind=f"dominance_{estimator}",
        thresholds={"level": 2, "j": j, "own": own, "size": 0.1},
        means=means,
        action=READ_TOKENS,
        source=f"docs/alerts.md#dominance: {source}",
        withholds=(habit,),
        joins_story=True,
    )


DOMINANCE_K1 = _rule(
    "k1", 4.0, 1.5, LEFT_TAIL, HABIT_K1, "k1's variance and mean without its top tokens"
)
DOMINANCE_K3 = _rule(
    "k3", 20.0, 4.0, RIGHT_TAIL, HABIT_K3, "k3's mean without its top tokens, and their distance"
)
