"""The receipt of a KL term in words: what its numbers of a step say."""

from __future__ import annotations

import math

from klmonitor.numbers.dominance import most_tokens_k1
from klmonitor.report import PairReport

HEAVY = 0.5
"""cv/lambda below which e^d has tails that sampled tokens do not resolve (docs/estimators.md)."""
CONCENTRATED = 0.2
"""Share of the pull that is worth a word where the largest tokens hold it."""
OVERRULED = 0.01
"""Share of the rewarded tokens that is worth a word where the penalty overrules their reward."""


def told(pair: PairReport) -> str:
    """The term, and what a step's tokens make of it; empty where no term is known."""
    numbers = measured(pair)
    return f"{pair.penalty}{'; ' if numbers else ''}{numbers}" if pair.penalty else ""


def measured(pair: PairReport) -> str:
    """What a step's tokens make of the term: how strong, on how many, through how few of them."""
    parts = [_weight(pair), _exactly(pair), _dead(pair), _largest(pair), _overruled(pair)]
    return ", ".join(part for part in parts if part)


def heavy(pair: PairReport) -> bool:
    """Whether the tails are too heavy for tokens to tell what the gradient is."""
    return bool(pair["dominance/level"] >= 1 or pair["cv/lambda"] < HEAVY)


def _weight(pair: PairReport) -> str:
    """How many times beta it pulls, with what makes that doubtful."""
    beta = pair["penalty/beta"]
    if not beta:
        return ""
    effective = pair["penalty/effective_beta"]
    if math.isnan(effective):
        return ""
    times = round(effective / beta, 2) + 0.0
    error = abs(pair["penalty/effective_beta_se"] / beta)
    doubt = ", with tails too heavy for this to be the gradient's" if heavy(pair) and error else ""
    return f"in the space of tokens it pulls {times:.2f} +- {error:.1g} times beta{doubt}"


def _exactly(pair: PairReport) -> str:
    """The same in the space of logits, where an audit looked."""
    beta, effective = pair["penalty/beta"], pair["audit/effective_beta"]
    if not beta or math.isnan(effective):
        return ""
    return (
        f"exactly, in the logits of {pair['audit/positions']:.0f} positions, "
        f"{effective / beta:.2f} times (cosine {pair['audit/cosine']:.2f})"
    )


def audit_line(pair: PairReport) -> str:
    """The exact KL of an audit beside k1 of the same positions; empty where there was none."""
    n = pair["audit/positions"]
    if not n > 0:
        return ""
    exact, k1 = (
        f"{pair[f'audit/{name}']:.3g} +- {pair[f'audit/{name}_se']:.1g}" for name in ("kl", "k1")
    )
    return (
        f"exact KL at {n:.0f} positions: {exact} nats, where k1 of their tokens is {k1} "
        "[docs/penalty.md]"
    )


def _dead(pair: PairReport) -> str:
    share = pair["penalty/dead_share"]
    if not share > 0:
        return ""
    lost = pair["penalty/dead_pull"]
    of_pull = f", {lost:.0%} of what the reverse KL would pull" if lost >= 0.01 else ""
    return f"{100 * share:.2g} % of the tokens pull nothing{of_pull}"


def _largest(pair: PairReport) -> str:
    share = pair["penalty/top_share"]
    if not share > CONCENTRATED:
        return ""
    m = most_tokens_k1(pair.tokens)
    carry = "one token carries" if m == 1 else f"{m} tokens carry"
    return f"{carry} {share:.0%} of the pull"


def _overruled(pair: PairReport) -> str:
    share = pair["penalty/overruled"]
    if not share >= OVERRULED:
        return ""
    lost = pair["penalty/overruled_lost"]
    which = f", {lost:.0%} of them tokens that the policy gave up (d > 0)" if lost >= 0 else ""
    return f"it overrules the reward of {100 * share:.2g} % of the tokens{which}"
