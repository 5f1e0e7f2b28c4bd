"""The KL term of the objective pulls something else than its name says (docs/penalty.md).

Three things that the receipt of the term shows and its value never does: a clamp that stops the
pull where the policy strayed furthest, a few tokens that hold the pull, a term that pushes away
from the reference though its weight is positive. Each is a state of the run rather than an event,
so it is told once in a thousand steps.
"""

from __future__ import annotations

from klmonitor.numbers.dominance import most_tokens_k1
from klmonitor.numbers.receiptwords import heavy
from klmonitor.report import ExtremeToken, PairReport
from klmonitor.rules.rule import SIMMERING, Finding, Rule, Thresholds
from klmonitor.rules.track import Reading
from klmonitor.rules.words import count, name_tokens, nats


def pull_dead(reading: Reading, limits: Thresholds) -> Finding | None:
    """Clamped tokens hold much of what the reverse KL would pull, and get nothing.

    Thresholds: `share` of the sum of |d|, `tokens` at least.
    """
    pair = reading.pair
    if not pair["penalty/dead_share"] * pair.tokens >= limits["tokens"]:
        return None
    dead, lost = pair["penalty/dead_share"] * pair.tokens, pair["penalty/dead_pull"]
    if not lost >= limits["share"] / 2:
        return None
    if lost < limits["share"]:
        return SIMMERING
    return Finding(
        message=(
            f"the KL term pulls {count(dead, 'token')} of {pair.tokens:.0f} not at all, those that "
            f"strayed furthest: {lost:.0%} of what the reverse KL would pull; the term is "
            f"{pair.penalty}"
        ),
        values={"dead_share": pair["penalty/dead_share"], "dead_pull": lost},
    )


def pull_dominated(reading: Reading, limits: Thresholds) -> Finding | None:
    """The few tokens of largest |c| hold most of what the KL term pulls.

    Thresholds: `share` of the sum of |c|; `nats` of k3, below which nothing is judged; `tokens` at
    least in the step.
    """
    pair = reading.pair
    if not (pair.tokens >= limits["tokens"] and pair["k3/mean"] >= limits["nats"]):
        return None
    share = pair["penalty/top_share"]
    if not share >= limits["share"] / 2:
        return None
    if share < limits["share"]:
        return SIMMERING
    most = most_tokens_k1(pair.tokens)
    tokens = _furthest(pair, most)
    message = (
        f"{count(most, 'token')} of {pair.tokens:.0f} {'holds' if most == 1 else 'hold'} "
        f"{share:.0%} of what the KL term pulls"
    )
    if tokens:
        message += f"; {name_tokens(tokens)}"
    return Finding(
        message=f"{message}; the term is {pair.penalty}",
        values={"top_share": share},
        tokens=tokens,
    )


def _furthest(pair: PairReport, most: int) -> tuple[ExtremeToken, ...]:
    """The extreme tokens on the side of the one that is pulled most, without their text."""
    left = pair["penalty/top_d"] < 0
    side = [token for token in pair.most_extreme(most) if (token.log_ratio < 0) == left]
    return tuple(token.with_text(None) for token in side)


def pull_reversed(reading: Reading, limits: Thresholds) -> Finding | None:
    """With a positive beta the KL term pushes away from the reference.

    Judged where tails are light enough for tokens to tell.
    Thresholds: `z`, standard errors below 0 of the effective beta; `share` of beta that it is below
    0 at least; `nats` of k3, below which nothing is judged.
    """
    pair = reading.pair
    beta, effective = pair["penalty/beta"], pair["penalty/effective_beta"]
    if not (beta > 0 and effective <= -limits["share"] * beta) or heavy(pair):
        return None
    below = effective + limits["z"] * pair["penalty/effective_beta_se"] < 0
    if not (below and pair["k3/mean"] >= limits["nats"]):
        return None
    return Finding(
        message=(
            f"the KL term pushes away from the reference: its effective beta is {effective:.2g} +- "
            f"{pair['penalty/effective_beta_se']:.1g} at k3 = {nats(pair['k3/mean'])}, beta is "
            f"{beta:g}; the term is {pair.penalty}"
        ),
        values={"effective_beta": effective, "se": pair["penalty/effective_beta_se"]},
    )


PULL_DEAD = Rule(
    judge=pull_dead,
    thresholds={"share": 0.1, "tokens": 5},
    means="a clamp in the loss has no derivative beyond its limit: it lets go of the worst tokens",
    action=(
        "take the clamp off, or give its tokens a gradient (straight-through; rho times k3, rho "
        "differentiated; k1 in the reward)"
    ),
    source="docs/alerts.md#pull: share of |d| on tokens whose coefficient is 0",
    cooldown=1000,
    calm_for=5,
)
PULL_DOMINATED = Rule(
    judge=pull_dominated,
    thresholds={"share": 0.5, "nats": 1e-3, "tokens": 1000},
    means="k3's coefficient grows as e^d: where the policy gave a token up it outweighs all others",
    action="look at the named tokens; a term whose coefficient is -d (docs/penalty.md) has none so",
    source="docs/alerts.md#pull: share of |c| on the tokens of largest |c|",
    cooldown=1000,
    calm_for=5,
    joins_story=True,
    lasting=True,
)
PULL_REVERSED = Rule(
    judge=pull_reversed,
    thresholds={"z": 4.0, "share": 0.1, "nats": 1e-3},
    means="k3 or k2 in the reward: their gradient is not the KL's, and may have the other sign",
    action="put k1 into the reward, or a term of docs/penalty.md whose effective beta is 1",
    source="docs/alerts.md#pull: token-space effective beta and its error",
    cooldown=1000,
    calm_for=5,
)
