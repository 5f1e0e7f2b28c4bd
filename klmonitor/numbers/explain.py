"""What the numbers of a step say, in at most four sentences beside the verdict.

Every sentence names its numbers and where the reasoning is written down.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from types import MappingProxyType

from klmonitor.numbers.carriers import group_apart
from klmonitor.numbers.receiptwords import audit_line, told
from klmonitor.numbers.student import interval
from klmonitor.numbers.verdicts import UNKNOWN_SAMPLER, gap_fails, unresolved, verdict
from klmonitor.report import ExtremeToken, PairReport, Part, Verdict, joined

FEW_SEQUENCES = 30
"""Below it a cluster standard error is itself too noisy (docs/estimators.md)."""
CANCELLING = 0.9
BIAS_Z, BIAS_SHARE = 3.0, 0.1
BIAS_FLOOR = 1e-6
"""Nats: a smaller bias of k2 is float32's rounding."""
FAR = 1.0
"""Nats per token: two policies that are a factor of e apart at every token."""
MOST = 4
NOTHING: Mapping[str, float] = MappingProxyType({})


def with_verdict(pair: PairReport, open_kinds: Collection[str] = ()) -> PairReport:
    """A pair's report with its verdict, and the words beside it.

    Args:
        pair: the numbers.
        open_kinds: kinds of alert that are open on it.
    """
    return pair.changed(verdict=_verdict, open_kinds=tuple(sorted(open_kinds)), words=findings)


def judged(
    pair: PairReport, open_kinds: Collection[str] = (), more: Mapping[str, float] = NOTHING
) -> PairReport:
    """As `with_verdict`, with more values, and the verdict as the metric ``best``."""
    kinds = tuple(sorted(open_kinds))
    best = Part(("best",), lambda: {"best": verdict(pair.values, kinds, pair.cause).best})
    return pair.changed(
        values=joined(pair.values, more, best),
        verdict=_verdict,
        open_kinds=kinds,
        words=findings,
    )


def _verdict(pair: PairReport) -> Verdict:
    return verdict(pair.values, pair.open_kinds, pair.cause)


def findings(pair: PairReport) -> list[str]:
    """What there is to know of a pair beside the verdict, the weightiest first."""
    if pair.tokens == 0 or pair["identical"] == 1:
        return [line for line in [_nonfinite(pair)] if line]
    if pair.impossible:
        found = (_nonfinite(pair), _dominated(pair, "k1"), _dominated(pair, "k3"))
        return [line for line in found if line]
    every = (
        _nonfinite(pair),
        _level(pair),
        _gap(pair),
        _dominated(pair, "k1"),
        _dominated(pair, "k3"),
        _of_group(pair),
        _precision(pair),
        _pull(pair),
        audit_line(pair),
        _cancellation(pair),
        _biased(pair),
        _few(pair),
    )
    return [line for line in every if line][: MOST - bool(pair.cause.text)]


def _level(pair: PairReport) -> str:
    """Whether the KL itself is out of range, whatever its trend is."""
    if not min(pair.k1.mean, pair.k3.mean) >= FAR:
        return ""
    left = {
        "ref": "the policy has left the reference",
        "policy": "one update changed the policy beyond what clipping means to allow",
    }
    q, p = pair.name.split("_")
    what = "trainer and engine are different policies" if q == "rollout" else left.get(p, "")
    return f"{pair.k1.mean:.2g} nats per token: {what}"


def _of_group(pair: PairReport) -> str:
    """The declared group that makes most of the KL, if one does."""
    found = group_apart(pair.values)
    return f"one group makes most of it: {found}" if found else ""


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


def _pull(pair: PairReport) -> str:
    """The receipt of the KL term in one sentence."""
    found = told(pair)
    return f"the KL term is {found} [docs/penalty.md]" if found else ""


def top_tokens(pair: PairReport, name: str) -> list[ExtremeToken]:
    """The tokens that the dominance rule of ``"k1"`` or ``"k3"`` takes together, largest first."""
    count = pair[f"dominance/{name}/tokens"]
    m = 0 if math.isnan(count) else int(count)
    size = {"k1": lambda token: abs(token.log_ratio), "k3": lambda token: token.k3}[name]
    return sorted(pair.extremes, key=size, reverse=True)[:m]


def _gap(pair: PairReport) -> str:
    gap, z = pair["gap"], pair["gap_z"]
    if not gap_fails(pair.values) or pair.cause.name == UNKNOWN_SAMPLER:
        return ""
    q, p = pair.name.split("_")
    weighted = pair["on_policy"] == 0
    what = f"the tokens were hardly drawn from {q}"
    likely = "the sampler was another one"
    if gap < 0:
        what = f"{min(-gap, 1.0):.2g} of {p}'s mass lies where {q} hardly samples"
        likely = f"{q} has collapsed or was cut (top-p, top-k)"
    elif weighted:
        what = f"the tokens are no draws from {q} as {q} and {p} score them"
    if weighted:
        likely = (
            f"{p}'s log-probs are not those of these tokens, or what drew them is scored otherwise"
        )
        likely += f", or {q} has collapsed" if gap < 0 else ""
    why = "" if pair.cause.text else f"; likely {likely}"
    return (
        f"{what}: {'importance-weighted ' if weighted else ''}mean(k3) - mean(k1) = {gap:.3g}, "
        f"{z:.1f} standard errors from its expectation 0{why} [docs/estimators.md]"
    )


def _precision(pair: PairReport) -> str:
    if not unresolved(pair.values):
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
    if not (abs(z) > BIAS_Z and abs(bias) > max(BIAS_SHARE * pair.k3.mean, BIAS_FLOOR)):
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
