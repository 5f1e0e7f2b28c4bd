"""One token whose ratio enters the loss without a bound: the whole step may be its gradient.

The clipped surrogate of PPO and GRPO, min(r A, clip(r) A) with r = policy / old, has no upper bound
where the advantage A is negative. This is no dominance (a mean that misleads): it is what training
does at this step. Hence the one kind that is critical on a single token, however few there are.
"""

from __future__ import annotations

import math

from klmonitor.report import ExtremeToken, PairReport
from klmonitor.rules.rule import Finding, Rule, Thresholds
from klmonitor.rules.track import Reading
from klmonitor.rules.words import count, name_tokens, plain
from klmonitor.summary.fields import FAR_RATIO

SAME = 1e-3
"""Nats: a token's d is known to so much."""


def unclipped(reading: Reading, limits: Thresholds) -> Finding | None:
    """A token of `old_policy` with a ratio of ten and more holds much of the loss's weight.

    Critical where its advantage is known to be negative and the objective to clip; else a warning.
    Thresholds: `share` of sum |A| r that such tokens hold; without advantages, that one token holds
    of sum r.
    """
    pair = reading.pair
    if pair.name != "old_policy":
        return None
    tokens = pair["unclipped/tokens"]
    if math.isnan(tokens):
        return _perhaps(pair, limits)
    share, ratio = pair["unclipped/share"], pair["unclipped/ratio"]
    if not tokens >= 1 or not share >= limits["share"]:
        return None
    known = not math.isnan(pair["clip/high"])
    where = _which(pair, tokens, ratio)
    named = f": {name_tokens(where)}" if where else ""
    doubt = "" if known else ", unless the objective bounds it (its clip range is not known)"
    ratios = f"a ratio of {plain(ratio)}" if tokens == 1 else f"ratios of {plain(ratio)}"
    verb = "enters" if tokens == 1 else "enter"
    return Finding(
        message=(
            f"{count(tokens, 'token')} with {ratios} to old and a negative advantage {verb} the "
            f"loss unclipped and hold {share:.0%} of its weight, sum |advantage| ratio"
            f"{doubt}{named}"
        ),
        values={"tokens": tokens, "share": share, "ratio": ratio},
        tokens=where,
    ).critical_if(known)


def _perhaps(pair: PairReport, limits: Thresholds) -> Finding | None:
    """Without advantages: one token whose ratio is large beside all others'."""
    d = pair["log_ratio/max"]
    if not d >= math.log(FAR_RATIO):
        return None
    ratio = math.exp(min(d, 300.0))
    whole = pair.tokens * (1 + pair["k3/mean"] - pair["k1/mean"])
    share = ratio / whole if whole > 0 else math.nan
    if not share >= limits["share"]:
        return None
    where = _which(pair, 1, ratio)
    named = f": {name_tokens(where)}" if where else ""
    return Finding(
        message=(
            f"one token has a ratio of {plain(ratio)} to old, {min(share, 1.0):.0%} of the sum of "
            "all ratios; where its advantage is negative no clipping bounds it (pass advantages= "
            f"to tell){named}"
        ),
        values={"share": min(share, 1.0), "ratio": ratio},
        tokens=where,
    )


def _which(pair: PairReport, tokens: float, ratio: float) -> tuple[ExtremeToken, ...]:
    """The extreme tokens that these are, as far as that is sure."""
    far = [token for token in pair.extremes if token.log_ratio >= math.log(FAR_RATIO)]
    if tokens == 1:
        wanted = math.log(ratio)
        far = [token for token in far if abs(token.log_ratio - wanted) <= SAME * max(1, wanted)]
    return tuple(token.with_text(None) for token in far) if len(far) == tokens else ()


UNCLIPPED = Rule(
    judge=unclipped,
    thresholds={"share": 0.1},
    means=(
        "the policy finds a token that it drew far likelier than when it drew it: log-probs of old "
        "that are not the sampler's, a token that the mask should hide, or too many updates on one "
        "batch"
    ),
    action=(
        "look at the named token under both policies; bound the ratio for negative advantages too "
        "(dual clip, TRL's delta), or leave the token out"
    ),
    source="docs/alerts.md#unclipped: PPO's surrogate has no bound where the advantage is negative",
    of_one=True,
)
