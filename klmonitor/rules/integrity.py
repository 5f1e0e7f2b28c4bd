"""Numbers that cannot be right, whatever the level of KL."""

from __future__ import annotations

import math

from klmonitor.numbers.sums import GAP_SHARE, GAP_Z
from klmonitor.numbers.verdicts import UNRESOLVED, gap_floor
from klmonitor.rules.flat import SKIP
from klmonitor.rules.rule import SIMMERING, WARN, Finding, Rule, Thresholds
from klmonitor.rules.track import LARGE, Reading
from klmonitor.rules.words import dropout, heaviest, name_tokens, nats, not_draws, plain

WEIGHTED = (
    "weights make up for what drew the tokens, so that p's log-probs are not those of these tokens "
    "(another base, a mean over the sequence, other ids), the sampler's are not those that it drew "
    "with, or q has collapsed onto tokens that p finds unlikely"
)
LOOK_AT_BOTH = (
    "compare p's log-probs of some tokens with q's, then the sampler's settings with those that "
    "its log-probs are computed with; if they are right, look whether the policy has collapsed"
)
"""Of a gap that is importance-weighted: what it means, and what to do first."""
ABOVE = (
    "the sampler is not q (stale weights, another temperature), q is scored otherwise than it "
    "samples (dropout, no attention mask), tokens that nobody sampled are counted (a prompt, a "
    "tool's output), or the two policies are passed the wrong way round"
)
LOOK_AT_TOKENS = (
    "compare the sampler's settings (temperature, weights) with those of the log-probs; if they "
    "agree, decode the tokens that the mask lets through, and look which policy is which"
)
"""Likewise of one above 0, which no collapse makes."""


def nonfinite(reading: Reading, limits: Thresholds) -> Finding | None:
    """NaN or infinite log-ratios, or an estimate that is itself not finite.

    Thresholds: `critical_share`, the share of tokens from which it is critical.
    """
    pair = reading.pair
    bad = pair["nonfinite"]
    seen = pair.tokens
    broken = [name for name in ("k1/mean", "k3/mean") if abs(pair[name]) >= LARGE]
    if seen != 0 and math.isnan(pair["k3/mean"]):
        broken.append("k3/mean")
    if not bad > 0 and not broken:
        return None
    share = bad / (seen + bad) if bad > 0 else 0.0
    critical = bool(broken) or share >= limits["critical_share"]
    parts = []
    if bad > 0:
        parts.append(f"{bad:.0f} of {seen + bad:.0f} log-ratios are NaN or infinite")
    if broken:
        parts.append(f"{' and '.join(broken)} not finite")
    if bad > 0 and seen > 0:
        parts.append("the means are over the others")
    return Finding(
        message="; ".join(parts),
        values={"nonfinite": bad, "share": share},
    ).critical_if(critical)


def gap(reading: Reading, limits: Thresholds) -> Finding | None:
    """k3 - k1 = mean(e^d) - 1 is not 0, as it is in expectation when q drew the tokens.

    Judged over the last five steps together, and only where q is known to be the sampler, or
    the tokens are as good as its own: the gap is importance-weighted then.
    Thresholds: `z` and `rearm` in standard errors; `share`, the least share of k3 that the gap
    must be; `critical_share`.
    """
    pair, error = reading.pair, reading.gap_error
    if math.isnan(error):
        return None
    weighted = pair["on_policy"] == 0
    earlier, squares = reading.gaps
    steps = earlier.size + 1
    mean = (sum(earlier.tolist()) + pair["gap"]) / steps
    spread = math.sqrt(sum(squares.tolist()) + error**2) / steps
    z = mean / spread if spread > 0 else 0.0
    if not abs(z) > limits["rearm"]:
        return None
    share = abs(mean) / pair["k3/mean"] if pair["k3/mean"] > 0 else math.nan
    beyond = abs(mean) > gap_floor(pair.values)
    if not (abs(z) > limits["z"] and share > limits["share"] and beyond):
        return SIMMERING
    critical = share > limits["critical_share"]
    together = "" if steps == 1 else f" over {steps} steps"
    what, means = not_draws(reading, _noise(reading) or ABOVE)
    return Finding(
        message=(
            f"k3 - k1 = {nats(mean)} per token{' (importance-weighted)' if weighted else ''}"
            f"{together} is {z:+.1f} standard errors from 0, {_of_k3(share, steps)}: "
            + (
                what
                if mean > 0
                else f"{min(-mean, 1.0):.2g} of p's mass lies where q hardly samples"
            )
        ),
        values={"gap": mean, "gap_z": z, "share": share},
        means=WEIGHTED if weighted else means if mean > 0 else _noise(reading),
        action=LOOK_AT_BOTH if weighted else LOOK_AT_TOKENS if mean > 0 else "",
    ).critical_if(critical)


def _of_k3(share: float, steps: int) -> str:
    """A gap beside this step's k3; over several steps it is not that of this step alone."""
    size = f"{100 * share:.3g} % of" if share <= 1 else f"{plain(share)} times"
    return f"{size} k3" if steps == 1 else f"{size} this step's k3"


def _noise(reading: Reading) -> str:
    """What dropout means for the gap; empty: there is none."""
    if not (noise := dropout(reading)):
        return ""
    return (
        f"{noise}: it is not active where the tokens are drawn, so that they are no draws from "
        "the policy as it is scored"
    )


def low_precision(reading: Reading, limits: Thresholds) -> Finding | None:
    """The log-probs are bfloat16 or float16 numbers.

    Thresholds: `nats`, the k3 below which what is watched cannot be resolved.
    """
    pair = reading.pair
    if not pair["low_precision"] >= 0.99:
        return None
    unresolved = 0 <= pair["k3/mean"] < limits["nats"]
    return Finding(
        level=WARN,
        severity="warn" if unresolved else "info",
        message=(
            "log-probs come in bf16 or fp16: k2 and k3 below "
            f"{nats(limits['nats'])} per token cannot be resolved (k3 now {nats(pair['k3/mean'])})"
        ),
        values={"k3": pair["k3/mean"], "floor": limits["nats"]},
    )


def outlier_rate(reading: Reading, limits: Thresholds) -> Finding | None:
    """Many more tokens than usual lie beyond |d| = 2 (a ratio of 7.4).

    Judged on the square root of their share, whose error does not depend on the share.
    Thresholds: `z` and `rearm` in scales of that root, `ratio` in multiples of the usual share and
    of what was usual lately, for a share that grows with KL is no burst; `tokens`, the fewest
    outliers that count.
    """
    pair, score = reading.pair, reading.outliers
    if not score.value > score.centre:
        return None
    rate, usual = pair["outliers/rate"], 1e4 * max(score.centre, 0.0) ** 2
    outliers = rate * pair.tokens / 1e4
    far = score.z > limits["z"] and outliers >= limits["tokens"]
    if not (far and rate > limits["ratio"] * max(usual, 1e4 * score.lately**2)):
        return SIMMERING if score.z > limits["rearm"] else None
    tokens = heaviest(pair, "k1", 3)
    message = (
        f"{outliers:.0f} of {pair.tokens:.0f} tokens beyond |d| = 2 nats, {plain(rate)} per 10,000 "
        f"where {plain(usual)} is the median of earlier steps, the latest {SKIP} left out "
        f"(z = {score.z:.1f})"
    )
    if tokens:
        message += f"; {name_tokens(tokens)}"
    return Finding(
        message=message,
        values={"rate": rate, "usual": usual, "outliers": outliers, "z": score.z},
        tokens=tokens,
    )


NONFINITE = Rule(
    judge=nonfinite,
    thresholds={"critical_share": 0.01},
    means=(
        "a log-prob overflowed, a padding value leaked through the mask, or the "
        "weights are already NaN"
    ),
    action=(
        "find which of the two log-probs is not finite (loss, gradient norm and the sampler's "
        "log-probs of that batch), and stop before the optimizer spreads it; a masked-out token "
        "is harmless, so check the mask too"
    ),
    source="docs/alerts.md#nonfinite: counted apart, never averaged in",
    calm_for=5,
    of_excluded=True,
)
GAP = Rule(
    judge=gap,
    thresholds={"z": GAP_Z, "share": GAP_SHARE, "critical_share": 1.0, "rearm": 3.0},
    means=(
        "the sampler is not q (stale weights, top-p, top-k), q is scored otherwise than it samples "
        "(dropout, no attention mask), or q has collapsed onto tokens that p finds unlikely"
    ),
    action=(
        "compare the sampler's settings (temperature, top-p, top-k, weights' version) with those "
        "of the log-probs; if they agree, look whether the policy has collapsed (entropy)"
    ),
    source="docs/alerts.md#gap: mean(e^d) = 1 under x ~ q, pooled over five steps",
    cooldown=200,
    calm_for=5,
)
LOW_PRECISION = Rule(
    judge=low_precision,
    thresholds={"nats": UNRESOLVED},
    means="the log-softmax was computed or stored in 16 bits",
    action="compute the log-softmax in float32 (upcast the logits) on both sides",
    source="docs/alerts.md#low-precision: low bits of the log-probs are zero",
    cooldown=1000,
    calm_for=20,
)
OUTLIER_RATE = Rule(
    judge=outlier_rate,
    thresholds={"z": 6.0, "ratio": 3.0, "tokens": 10, "rearm": 3.0},
    means=(
        "many tokens at once that p and q see differently: a new kind of sample, a "
        "template, a tool output"
    ),
    action="look at the outliers' positions: one sequence, one prompt, one kind of token?",
    source="docs/alerts.md#outlier-rate: robust z of the root of the share",
    joins_story=True,
)
