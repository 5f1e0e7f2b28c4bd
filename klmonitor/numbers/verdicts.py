"""One verdict on a step: which estimator to believe, and why.

Alerts, `Report.explain()` and the metric ``best`` all say what `verdict` says. Where nothing speaks
against k1 or k3 that is their mixture at lambda (``cv/mean``), unless it is one of them. An
estimator that an open alert excludes is never named, and one that its own tokens carry only beside
a worse one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from klmonitor.numbers.student import interval
from klmonitor.numbers.sums import GAP_SHARE, GAP_Z, NEARLY_ALL
from klmonitor.report import Cause, Verdict

Numbers = Mapping[str, float]
"""A pair's metrics by name, without ``kl/{pair}/``; absent ones are unknown."""

GAP_FLOOR = 1e-4
"""Nats: what rounding, which no softmax makes up for, leaves at most; ten times it at 16 bits."""
UNRESOLVED = 1e-4
"""Nats: k3 that log-probs of 16 bits cannot resolve."""
SAYS_NOTHING = 2.0
"""Standard errors within which of 0 an estimate does not even tell its sign."""
EITHER = 0.1
"""At a weight of r - 1 (``cv/lambda``) within this of 0 or 1 the mixture is k1 or k3."""
HEAVY = 0.5
"""At a smaller effective share of r a few tokens make k3's spread: its interval cannot hold."""
LITTLE = 0.05
"""Relative difference up to which tokens of another policy are as good as q's own, where their
effective share is `NEARLY_ALL`."""


NO_CAUSE = Cause()
_NOT_DRAWN = "neither: the tokens were not drawn from q as it is scored, whatever both report"
VOID: Mapping[str, str] = {
    "shift": "neither: the tensors are shifted by one position",
    "other tokens": "neither: the engine and the trainer do not score the same tokens",
    "argmax": "neither: q's log-probs are not those of these tokens",
    "scaled": "neither: one policy's log-probs are a multiple of the other's",
    "unnormalised": "neither: q's and p's probabilities are not over the same tokens",
    "turned round": "neither: the tokens fit draws from p, not from q",
    "unknown": "neither: engine and trainer disagree by more than any known cause explains",
    "other sampler": _NOT_DRAWN,
    **{f"{how}, scored raw": _NOT_DRAWN for how in ("cut", "colder", "narrower", "warmer")},
}
"""Causes that leave nothing of the estimates."""
UNKNOWN_SAMPLER = "unknown sampler"
"""Cause of a pair whose tokens another policy drew, of impossible log-probs: there are no weights.
Why its own policies disagree, if they do, it does not say."""


def verdict(
    numbers: Numbers, open_kinds: Collection[str] = frozenset(), cause: Cause = NO_CAUSE
) -> Verdict:
    """Which estimator of a pair to believe at a step.

    Args:
        numbers: the pair's metrics.
        open_kinds: kinds of alert that are open on the pair, this step's among them.
        cause: why its policies disagree, where it is known.
    """
    if cause.impossible:
        return Verdict(None, f"neither: {cause.text}")
    if cause.name == UNKNOWN_SAMPLER:
        return Verdict(None, _unknown(numbers) or f"neither: {cause.text}")
    said = _unknown(numbers) or VOID.get(cause.name) or _not_drawn(numbers, open_kinds, cause)
    if said:
        return Verdict(None, said)
    carried = [k for k in ("k1", "k3") if dominated(numbers, k) or f"dominance_{k}" in open_kinds]
    if _gap_is_told(numbers, open_kinds):  # of the two ways, the one left by then
        return _without_k3(numbers, "k1" in carried)
    if len(carried) == 2:
        return _both_carried(numbers, open_kinds)
    if carried:
        return _one_carried(numbers, open_kinds, carried[0])
    return _quieter(numbers)


def gap_fails(numbers: Numbers, z: float = GAP_Z, share: float = GAP_SHARE) -> bool:
    """Whether k1 and k3 are further apart than sampling from q allows."""
    gap, gap_z, k3 = (get(numbers, name) for name in ("gap", "gap_z", "k3/mean"))
    return abs(gap_z) > z and abs(gap) > max(share * abs(k3), gap_floor(numbers))


def _gap_is_told(numbers: Numbers, open_kinds: Collection[str]) -> bool:
    """Whether the gap is known and fails, now or over the last steps."""
    known = not math.isnan(get(numbers, "gap")) or get(numbers, "on_policy") != 0
    return known and (gap_fails(numbers) or "gap" in open_kinds)


def gap_floor(numbers: Numbers) -> float:
    """Nats: a smaller gap is what the log-probs' format leaves."""
    return 10 * GAP_FLOOR if get(numbers, "low_precision") >= 1 else GAP_FLOOR


def unresolved(numbers: Numbers) -> bool:
    """Whether k3 is below what the log-probs' 16 bits resolve."""
    return get(numbers, "low_precision") >= 1 and get(numbers, "k3/mean") < UNRESOLVED


def dominated(numbers: Numbers, estimator: str) -> bool:
    """Whether a few tokens carry ``"k1"`` or ``"k3"`` at this step."""
    return get(numbers, f"dominance/{estimator}/level") >= 1


def get(numbers: Numbers, name: str) -> float:
    """A metric, nan where it is unknown."""
    return numbers.get(name, math.nan)


def _nats(numbers: Numbers, estimator: str, without: bool = False) -> str:
    value = get(numbers, f"{estimator}/mean_without_top" if without else f"{estimator}/mean")
    return f"{value:.3g} nats"


def _unknown(numbers: Numbers) -> str:
    """Why there is no estimate to speak of."""
    if get(numbers, "tokens") == 0:
        return "neither: no token was counted"
    if get(numbers, "identical") == 1:
        return "neither: both policies gave the very same log-probs, so every estimate is 0"
    if unresolved(numbers):
        return (
            f"neither: log-probs of 16 bits cannot resolve {_nats(numbers, 'k3')}, nothing below "
            f"{UNRESOLVED:g} is known"
        )
    return ""


def _not_drawn(numbers: Numbers, open_kinds: Collection[str], cause: Cause) -> str:
    """Why neither estimator holds for tokens that q did not draw, or hardly."""
    told, off_policy = _gap_is_told(numbers, open_kinds), get(numbers, "on_policy") == 0
    if off_policy and not told and not _as_if_drawn(numbers, _less_noisy(numbers)):
        k1, k3, ess = (get(numbers, f"iw/{name}") for name in ("k1/mean", "k3/mean", "ess"))
        return (
            f"neither: q did not draw these tokens; importance-weighted k1 = {k1:.4g}, k3 = "
            f"{k3:.4g} nats (effective share of tokens {ess:.0%})"
        )
    if told and get(numbers, "gap") > 0:
        if not gap_fails(numbers) and dominated(numbers, "k3"):
            return (
                "neither: the gap of the last steps is more than draws from q leave, and a few "
                "tokens make this step's"
            )
        if off_policy:
            return (
                "neither: k3 - k1 is more than draws from q leave, though weighted for what drew "
                "the tokens"
            )
        why = ": another temperature" if cause.name == "temperature" else ""
        return f"neither: the sampler draws tokens that q hardly would{why}"
    if "k1_negative" in open_kinds:
        return (
            "neither: k1 has averaged below 0, which no KL is, so the tokens are not draws from q, "
            "and k3 hides it by never being negative"
        )
    return ""


def _less_noisy(numbers: Numbers) -> str:
    """Of k1 and k3."""
    weight = get(numbers, "cv/lambda")
    quiet = (
        weight >= 0.5 if not math.isnan(weight) else get(numbers, "k3/se") <= get(numbers, "k1/se")
    )
    return "k3" if quiet else "k1"


def _as_if_drawn(numbers: Numbers, name: str) -> bool:
    """Whether another policy's tokens say of an estimator what q's own would."""
    value, weighted = get(numbers, f"{name}/mean"), get(numbers, f"iw/{name}/mean")
    return get(numbers, "iw/ess") >= NEARLY_ALL and abs(weighted - value) <= LITTLE * abs(value)


def _without_k3(numbers: Numbers, k1_carried: bool) -> Verdict:
    """Where k3 misses a part of the KL that k1 has."""
    why = "k3 misses what q no longer samples"
    off_policy = get(numbers, "on_policy") == 0
    if off_policy and not _as_if_drawn(numbers, "k1"):
        weighted = get(numbers, "iw/k1/mean")
        return Verdict(
            None,
            f"neither: {why}, and another policy drew the tokens (importance-weighted k1 = "
            f"{weighted:.4g} nats)",
        )
    if k1_carried:
        rest = _nats(numbers, "k1", without=True)
        return Verdict(None, f"neither: {why}, and a few tokens carry k1; without them k1 = {rest}")
    if_so = ", if p's log-probs are those of these tokens" if off_policy else ""
    return Verdict("k1", f"k1 = {_nats(numbers, 'k1')}{if_so}: {why}")


def _one_carried(numbers: Numbers, open_kinds: Collection[str], bad: str) -> Verdict:
    """Where tokens carry one estimator: the other, unless its error is as large as it is."""
    good = "k3" if bad == "k1" else "k1"
    rest = _nats(numbers, bad, without=True)
    errors = {k: get(numbers, f"{k}/se") for k in ("k1", "k3")}
    if not errors[bad] < errors[good]:
        return Verdict(good, f"{good} = {_nats(numbers, good)}: a few tokens carry {bad}, not it")
    if f"dominance_{bad}" not in open_kinds:
        return Verdict(
            bad,
            f"{bad} without its largest tokens, {rest}: even with them its error is smaller than "
            f"{good}'s",
        )
    if abs(get(numbers, f"{good}/mean")) < SAYS_NOTHING * errors[good]:
        return Verdict(
            None,
            f"neither: a few tokens carry {bad}, which is {rest} without them, and the error of "
            f"{good}, {errors[good]:.3g} nats, is as large as {good}",
        )
    return Verdict(good, f"{good} = {_nats(numbers, good)}: a few tokens carry {bad}, not it")


def _both_carried(numbers: Numbers, open_kinds: Collection[str]) -> Verdict:
    """Where tokens carry both, one perhaps more than the other."""
    rest = " and ".join(f"{k} = {_nats(numbers, k, without=True)}" for k in ("k1", "k3"))
    k1, k3 = (get(numbers, f"dominance/{k}/level") for k in ("k1", "k3"))
    better, worse = ("k1", "k3") if k1 < k3 else ("k3", "k1")
    if k1 == k3 or f"dominance_{better}" in open_kinds:
        return Verdict(None, f"neither: a few tokens carry both; without them {rest}")
    return Verdict(
        better, f"{better} before {worse}, which its tokens carry more; without them {rest}"
    )


def _quieter(numbers: Numbers) -> Verdict:
    """Where nothing speaks against either: the less noisy one."""
    if get(numbers, "on_policy") == 0:
        name = _less_noisy(numbers)
        weighted, ess = get(numbers, f"iw/{name}/mean"), get(numbers, "iw/ess")
        return Verdict(
            name,
            f"{name}: it is the less noisy here; another policy drew the tokens, which changes "
            f"little (importance-weighted {weighted:.3g} nats, effective share {ess:.0%})",
        )
    weight, cv = get(numbers, "cv/lambda"), get(numbers, "cv/mean")
    if weight <= EITHER:
        heavy = get(numbers, "ess") < HEAVY
        why = ", and k3's interval cannot hold: a few tokens of large p/q make it" if heavy else ""
        return Verdict("k1", f"k1: it is the less noisy here ({_best_mix(weight)}{why})")
    if weight >= 1 - EITHER:
        return Verdict("k3", f"k3: it is the less noisy here ({_best_mix(weight)})")
    if not math.isnan(weight) and not math.isnan(cv):
        errors = [get(numbers, f"{k}/se") for k in ("cv", "k1", "k3")]
        quieter = errors[0] <= min(errors[1:])
        why = "less noisy than either" if quieter else "as the noise of their tokens weighs them"
        low, high = interval(cv, errors[0], get(numbers, "clusters"), positive=True)
        low = max(low, 0.0)  # as no KL is below
        within = f" (95 % interval {low:.3g} to {high:.3g})" if low < high else ""
        return Verdict(
            "cv",
            f"cv = {cv:.3g} nats{within}, the mixture of k1 and k3, {why} (k3 counts {weight:.0%})",
        )
    if not math.isnan(weight):
        name = "k1" if weight < 0.5 else "k3"
        return Verdict(name, f"{name}: it is the less noisy here ({_best_mix(weight)})")
    k1, k3 = (get(numbers, f"{k}/se") for k in ("k1", "k3"))
    if k1 < k3:
        return Verdict("k1", f"k1: its error is the smaller, {k1:.3g} nats")
    if k3 <= k1:
        return Verdict("k3", f"k3: its error is the smaller, {k3:.3g} nats")
    if math.isnan(get(numbers, "tokens")):
        return Verdict()  # a series of KL alone: nobody asks which
    return Verdict(None, "neither: too little is known of this step to choose")


def _best_mix(weight: float) -> str:
    """Lambda in words."""
    return f"in their best mixture k3 counts {weight:.0%}, lambda {weight:.2f}"
