"""The verdict on a step, in two to six lines: what the numbers say and which estimator to believe.

Every line names its numbers and where the reasoning is written down.
"""

from __future__ import annotations

import math

from klmonitor.numbers.statistics import interval
from klmonitor.report import ExtremeToken, PairReport, Report

FEW_SEQUENCES = 30
"""Below it a cluster standard error is itself too noisy (docs/estimators.md)."""
CANCELLING = 0.9
GAP_Z, GAP_SHARE = 5.0, 0.1
BIAS_Z, BIAS_SHARE = 3.0, 0.1


def explain(report: Report) -> str:
    """The verdicts on all pairs of a report."""
    if not report.pairs:
        return f"step {report.step}: no tokens were counted"
    return "\n".join(explain_pair(pair, report.step) for pair in report.pairs.values())


def explain_pair(pair: PairReport, step: int) -> str:
    """The verdict on one pair: a headline and at most five reasons."""
    if nothing := _nothing(pair):
        return "\n".join([_headline(pair, step), f"  {nothing}"])
    findings = (
        _nonfinite(pair),
        _dominated(pair, "k1"),
        _dominated(pair, "k3"),
        _gap(pair),
        _precision(pair),
        _cancellation(pair),
        _biased(pair),
        _few(pair),
        _off_policy(pair),
    )
    reasons = [line for line in findings if line][:4]
    return "\n".join([_headline(pair, step), *(f"  {line}" for line in (*reasons, _believe(pair)))])


def _headline(pair: PairReport, step: int) -> str:
    q, p = pair.name.split("_")
    numbers = ", ".join(f"{name} {_mean(pair, name)}" for name in ("k1", "k2", "k3"))
    return (
        f"step {step}, KL({q} || {p}) over {pair.tokens:,.0f} tokens in "
        f"{pair['sequences']:,.0f} sequences: {numbers} nats/token"
    )


def _nothing(pair: PairReport) -> str:
    """Why there is no estimate to speak of."""
    if pair.tokens == 0:
        return f"{_nonfinite(pair)}: no estimate" if _nonfinite(pair) else "no tokens: no estimate"
    if pair["identical"] == 1:
        q, p = pair.name.split("_")
        return f"{q} and {p} gave the very same log-probs: every estimate is 0 [docs/estimators.md]"
    return ""


def _mean(pair: PairReport, name: str) -> str:
    estimate = pair.estimate(name)
    se = "" if math.isnan(estimate.se) else f" +- {estimate.se:.2g}"
    return f"{estimate.mean:.4g}{se}"


def _dominated(pair: PairReport, name: str) -> str:
    level = pair[f"dominance/{name}/level"]
    if not level >= 1:
        return ""
    tokens = top_tokens(pair, name)
    named = "; ".join(f"d = {token.log_ratio:+.3g} at {token.where}" for token in tokens[:2])
    verb = "carries" if len(tokens) == 1 else "carry"
    carries = {
        "k1": f"{pair['dominance/k1/v']:.0%} of its variance",
        "k3": f"{pair['dominance/k3/top_share']:.0%} of its sum",
    }[name]
    more = f" and {len(tokens) - 2} more" if len(tokens) > 2 else ""
    return (
        f"{name} is {'severely ' if level >= 2 else ''}dominated: {len(tokens)} of "
        f"{pair.tokens:,.0f} tokens {verb} {carries} ({named}{more}); mean "
        f"{pair[f'{name}/mean']:.4g} with them, {pair[f'{name}/mean_without_top']:.4g} without "
        f"[docs/dominance.md]"
    )


def top_tokens(pair: PairReport, name: str) -> list[ExtremeToken]:
    """The tokens that the dominance rule of ``"k1"`` or ``"k3"`` takes together, largest first."""
    count = pair[f"dominance/{name}/tokens"]
    m = 0 if math.isnan(count) else int(count)
    size = {"k1": lambda token: abs(token.log_ratio), "k3": lambda token: token.k3}[name]
    return sorted(pair.extremes, key=size, reverse=True)[:m]


def _gap(pair: PairReport) -> str:
    gap, z = pair["gap"], pair["gap_z"]
    if not (abs(z) > GAP_Z and abs(gap) > GAP_SHARE * pair.k3.mean):
        return ""
    why = "q has collapsed or was cut (top-p, top-k)" if gap < 0 else "the sampler was another one"
    return (
        f"the tokens were hardly drawn from {pair.name.split('_')[0]}: mean(k3) - mean(k1) = "
        f"{gap:.3g}, {z:.1f} standard errors from its expectation 0; likely {why} "
        f"[docs/estimators.md]"
    )


def _precision(pair: PairReport) -> str:
    if not pair["low_precision"] >= 1 or not pair.k3.mean < 1e-3:
        return ""
    return (
        f"the log-probs have 16-bit precision: k2 and k3 below 1e-4 cannot be resolved "
        f"(k3 = {pair.k3.mean:.2g}) [docs/estimators.md]"
    )


def _cancellation(pair: PairReport) -> str:
    cancels = pair["k1/cancellation"]
    low, high = interval(pair.k1.mean, pair.k1.se, _clusters(pair))
    if not (cancels > CANCELLING and low < 0 < high):
        return ""
    return (
        f"k1 is mostly cancellation: {cancels:.0%} of sum |k1| cancels and its 95 % interval "
        f"[{low:.2g}, {high:.2g}] holds 0, so its sign says nothing [docs/estimators.md]"
    )


def _biased(pair: PairReport) -> str:
    bias, z = pair["k2/bias"], pair["k2/bias_z"]
    if not (abs(z) > BIAS_Z and abs(bias) > BIAS_SHARE * pair.k3.mean):
        return ""
    return (
        f"k2 is biased here: mean(k2 - k1) = {bias:.3g}, {z:.1f} standard errors from 0; do not "
        f"read k2 [docs/estimators.md]"
    )


def _few(pair: PairReport) -> str:
    count = _clusters(pair)
    if pair["prompts"] == 1:
        return "one prompt: standard errors tell of its completions, not of other prompts"
    if not count < FEW_SEQUENCES:
        return ""
    by_prompt = pair["prompts"] == count
    what = "prompts" if by_prompt else "sequences"
    return f"standard errors are unreliable: {count:.0f} {what}, fewer than {FEW_SEQUENCES}"


def _clusters(pair: PairReport) -> float:
    return pair["clusters"]


def _nonfinite(pair: PairReport) -> str:
    if not pair["nonfinite"] > 0:
        return ""
    return f"{pair['nonfinite']:,.0f} tokens have a nan or infinite log-ratio and are left out"


def _off_policy(pair: PairReport) -> str:
    if pair["on_policy"] != 0:
        return ""
    return (
        f"{pair.name.split('_')[0]} did not draw these tokens: importance-weighted k1 "
        f"{pair['iw/k1/mean']:.4g}, k3 {pair['iw/k3/mean']:.4g} (effective share of tokens "
        f"{pair['iw/ess']:.0%}) [docs/estimators.md]"
    )


def _believe(pair: PairReport) -> str:
    k1, k3 = (pair[f"dominance/{name}/level"] >= 1 for name in ("k1", "k3"))
    failed = abs(pair["gap_z"]) > GAP_Z and abs(pair["gap"]) > GAP_SHARE * pair.k3.mean
    levels = [pair[f"dominance/{name}/level"] for name in ("k1", "k3")]
    if k1 and k3 and levels[0] < levels[1]:
        return "believe k1 before k3, whose mean is carried more by its tokens; both without them"
    if k1 and k3:
        return "believe neither mean: read both without their largest tokens"
    if failed and pair["gap"] > 0:
        return "believe neither: the sampler draws tokens that q hardly would"
    if failed:
        return "believe k1: where the gap test fails, k3 misses what q no longer samples"
    quieter = "k1" if pair.k1.se < pair.k3.se else "k3"
    if k1 and quieter == "k3":
        return "believe k3: no token dominates it and its error is the smaller"
    if k1:
        return "believe k1 without its largest tokens, or k3: neither is quiet here"
    if k3 and quieter == "k1":
        return "believe k1: no token dominates it and its error is the smaller"
    if k3:
        return (
            f"believe k3 without its largest tokens, {pair['k3/mean_without_top']:.4g}: even with "
            "them its error is smaller than k1's"
        )
    if pair["best"] == 1:
        return f"believe k1: it is the less noisy here (lambda {pair['cv/lambda']:.2f} < 1/2)"
    if pair["best"] == 3:
        return f"believe k3: it is the less noisy here (lambda {pair['cv/lambda']:.2f} >= 1/2)"
    return "nothing unusual: read k3 for its small error, k1 for its lack of bias"
