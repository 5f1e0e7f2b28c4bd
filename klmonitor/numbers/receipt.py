"""The receipt: what a step's tokens make of a KL term, from the sums that are kept anyway.

With c the term's coefficient (`klmonitor.penalty`), t = -d that of the reverse KL, and tokens drawn
from the policy itself (rho = 1), over the N counted tokens:

    pull            beta mean(c)
    effective beta  beta cov(c, t) / var(t): the weight of the reverse KL that c is nearest to, in
                    the space of tokens. Centred, as a constant in c pulls nothing in expectation.

Where c is a combination of 1, d, d^2 and e^d both follow from exact sums, and where it is a
straight line in t the second is its slope, whatever the tokens. Everything else, and both where a
clamp cuts c, is summed over the histogram, whose buckets are 1.6 % of d wide at most, with the
listed extreme tokens in their exact places. Torch-free.

What the gradient itself is, in the space of logits, no sum over sampled tokens tells: see
`klmonitor.pull`, and docs/penalty.md for where the two differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from klmonitor.numbers.buckets import EDGES, MIDDLES
from klmonitor.numbers.clusters import Array
from klmonitor.numbers.dominance import most_tokens_k1
from klmonitor.numbers.receiptmetrics import RECEIPT
from klmonitor.numbers.receiptrows import RowSums, of_rows, slope_of
from klmonitor.numbers.sums import KEY, StepSums
from klmonitor.pairs import parse_pairs
from klmonitor.penalty import Penalty
from klmonitor.summary.fields import CENTRE

SPREAD = 4
"""Places over which a bucket's tokens are spread: a clamp's limit may cut a bucket."""
_WIDTHS = np.diff(EDGES[1:])
_POSITIVE = np.zeros((len(EDGES), SPREAD))
_POSITIVE[1:-1] = EDGES[1:-1, None] + _WIDTHS[:, None] * (np.arange(SPREAD) + 0.5) / SPREAD
_POSITIVE[-1] = math.inf
_WITHIN = np.concatenate([-_POSITIVE[::-1], _POSITIVE])
"""[HISTOGRAM, SPREAD] d; 0 in the smallest bucket, +-inf beyond the last."""
STRAIGHT = {
    ("loss", "k1"): 0.0,
    ("loss", "k2"): 1.0,
    ("loss", "square"): 2.0,
    ("differentiated", "k1"): 1.0,
    ("differentiated", "k3"): 1.0,
    ("reward", "k1"): 1.0,
}
"""Terms whose c / rho is a straight line in t -> its slope, whatever the tokens are."""
NAMES = frozenset(name for name, *_ in RECEIPT if name.startswith("penalty/"))
"""What a receipt may have."""
DEFAULT_PAIR = "policy_ref"
"""Whose a penalty is that came without a pair."""


class Spectrum(NamedTuple):
    """A step's tokens of a pair, by d.

    Attributes:
        d: [M] nats: exact for the extreme tokens, within their bucket for the others.
        weight: [M] tokens there.
    """

    d: Array
    weight: Array


def by_pair(penalty: Penalty | Mapping[str, Penalty] | None) -> dict[str, Penalty]:
    """Pair -> its penalty; a lone one is that of `DEFAULT_PAIR`.

    Raises:
        ValueError: a name is no pair.
        TypeError: something is no `Penalty`.
    """
    if penalty is None:
        return {}
    found = dict(penalty) if isinstance(penalty, Mapping) else {DEFAULT_PAIR: penalty}
    parse_pairs(found)
    for pair, one in found.items():
        if not isinstance(one, Penalty):
            raise TypeError(f"the penalty of {pair} is {one!r}: give a klmonitor.Penalty")
    return found


def receipt(penalty: Penalty, sums: StepSums) -> dict[str, float]:
    """``penalty/*`` of a pair, as far as they follow from each token's d.

    Where other tokens than the policy's own are weighted with their ratio, the sums over all tokens
    know c / rho: the shares of tokens, and the effective beta where c / rho is a straight line in
    t, which no weights change. Where they are not weighted these know c, and not the effective
    beta. The rest, and all of it where the return or the ratio is a sequence's, is from the sums
    over rows (`receiptrows`).

    Args:
        penalty: the term on this pair.
        sums: the pair's.
    """
    rows = RowSums(sums.pulls)
    penalty = weighing(penalty, rows.beta(penalty.beta))
    found = of_rows(rows, penalty.beta) | _of_tokens(penalty, sums)
    return {"penalty/beta": penalty.beta, **found}


def at_once(penalty: Penalty, sums: StepSums) -> dict[str, float]:
    """Of `receipt` what rules and trackers read at every step, where the sums alone tell it."""
    rows = RowSums(sums.pulls)
    beta, on_policy = rows.beta(penalty.beta), sums.on_policy
    known = sums.n > 0 and not math.isnan(sums.counted)
    if not (known and of_tokens(penalty, on_policy) and pulls_all(penalty)):
        return {}
    if on_policy or penalty.ratio is not None:
        slope = straight(penalty)
        if on_policy and math.isnan(slope):
            slope = _slope(sums, exact_sums(penalty, sums))
    else:
        slope = slope_of(rows)
    if math.isnan(slope):
        return {}
    found = {"penalty/effective_beta": beta * slope, "penalty/dead_share": 0.0}
    return {"penalty/beta": beta, **found}


@lru_cache(64)
def weighing(penalty: Penalty, beta: float) -> Penalty:
    """The term with another weight."""
    return replace(penalty, beta=beta)


def _of_tokens(penalty: Penalty, sums: StepSums) -> dict[str, float]:
    """What follows from every token's own d."""
    found: dict[str, float] = {}
    n, on_policy = sums.n, sums.on_policy
    unknown = np.isnan(sums.histogram).any()  # a part came without it
    if not n > 0 or unknown or not of_tokens(penalty, on_policy):
        return found
    with np.errstate(all="ignore"):
        tokens = spectrum(sums, _WITHIN if clamped(penalty) else MIDDLES[:, None])
        c = penalty.coefficient(tokens.d)
        exact, size = _sums(penalty, sums, tokens, c), np.abs(c)
        if on_policy or penalty.ratio is not None:
            slope = straight(penalty)
            error = 0.0 * slope
            if on_policy and math.isnan(slope):
                slope, error = _effective(sums, tokens, c, exact)
            if not math.isnan(slope):
                found["penalty/effective_beta"] = penalty.beta * slope
                found["penalty/effective_beta_se"] = abs(penalty.beta) * error
        if on_policy or penalty.ratio is None:
            found["penalty/pull"] = penalty.beta * (exact[0] / n)
            found["penalty/top_d"] = float(tokens.d[np.argmax(size)])
            found["penalty/top_share"] = _top_share(size, tokens.weight, most_tokens_k1(n))
        dead, far = (c == 0) & (tokens.d != 0), tokens.weight * np.abs(tokens.d)
        found["penalty/dead_share"] = _share(tokens, dead)
        found["penalty/dead_pull"] = float(far[dead].sum() / far.sum()) if far.any() else math.nan
        found["penalty/opposite_share"] = _share(tokens, c * tokens.d > 0)
    return found


def straight(penalty: Penalty) -> float:
    """The slope in t of a term whose c / rho is a straight line, nan: it is none."""
    if penalty.straight_through and penalty.ratio != "differentiated":
        return STRAIGHT["loss", "k2"]
    if clamped(penalty) or penalty.straight_through:
        return math.nan
    differentiated = penalty.placed == "loss" and penalty.ratio == "differentiated"
    where = "differentiated" if differentiated else penalty.placed
    return STRAIGHT.get((where, penalty.estimator), math.nan)


def clamped(penalty: Penalty) -> bool:
    """Whether a limit may cut a bucket."""
    return penalty.clamp is not None or penalty.clamp_d is not None


def pulls_all(penalty: Penalty) -> bool:
    """Whether c is 0 only where d is: no token is dead."""
    if clamped(penalty):
        return False
    if penalty.placed == "reward":
        return penalty.estimator == "k1"
    return penalty.ratio != "differentiated" or penalty.estimator == "k3"


def of_tokens(penalty: Penalty, on_policy: bool) -> bool:
    """Whether each token's c follows from its own d."""
    if penalty.returns != "token":
        return False
    return penalty.level == "token" or (on_policy and penalty.ratio == "detached")


def spectrum(sums: StepSums, within: Array = MIDDLES[:, None]) -> Spectrum:
    """The tokens of a pair by d: those listed exactly, the rest spread evenly over their buckets.

    A token that is not listed is no further out than those that are.

    Args:
        sums: the pair's.
        within: [HISTOGRAM, places] d of the places of a bucket.
    """
    keys = sums.tokens[:, :, KEY].tolist()
    if any(math.isnan(key) for tail in keys for key in tail):
        keys = [[], []]  # a part came without its tokens: none is known to be the furthest
    left, right = ([key for key in tail if key > 0] for tail in keys)
    listed = np.array([*(-key for key in left), *right])
    bucket = EDGES.searchsorted(np.abs(listed), side="right")
    place = np.where(listed < 0, CENTRE - bucket, CENTRE + bucket - 1)
    counts = sums.histogram - np.bincount(place, minlength=len(sums.histogram))
    kept = np.flatnonzero(counts > 0)
    least, most = left[-1] if left else sums.smallest, right[-1] if right else sums.largest
    inside = np.clip(within[kept], -least, most).ravel()
    d = np.concatenate([inside, listed])
    weight = np.ones_like(d)
    weight[: inside.size] = np.repeat(counts[kept] / within.shape[1], within.shape[1])
    return Spectrum(d, weight)


def _sums(penalty: Penalty, sums: StepSums, tokens: Spectrum, c: Array) -> tuple[float, float]:
    """The sums of c and of c d: exact where the kept sums give them, else of the spectrum."""
    value_counts = penalty.placed == "reward" or penalty.ratio == "differentiated"
    if clamped(penalty) and (value_counts or not penalty.straight_through):
        exact = (math.nan, math.nan)
    else:
        exact = exact_sums(penalty, sums)
    if not any(map(math.isnan, exact)):
        return exact
    rough = (float(tokens.weight @ c), float(tokens.weight @ (c * tokens.d)))
    first, second = (b if math.isnan(a) else a for a, b in zip(exact, rough, strict=True))
    return first, second


def exact_sums(penalty: Penalty, sums: StepSums) -> tuple[float, float]:
    """The sums of c and of c d of an unclamped term at rho = 1; nan: not a combination of sums."""
    n, d, d2, absolute, k3, dk3 = sums.n, sums.d, sums.d2, sums.absolute, sums.k3, sums.dk3
    nan = math.nan
    value = {
        "k1": (-d, -d2),
        "k2": (d2 / 2, nan),
        "k3": (k3, dk3),
        "abs": (absolute, nan),
        "square": (d2, nan),
    }[penalty.estimator]
    slope = {
        "k1": (-n, -d),
        "k2": (d, d2),
        "k3": (d + k3, d2 + dk3),
        "abs": (nan, absolute),
        "square": (2 * d, 2 * d2),
    }["k2" if penalty.straight_through else penalty.estimator]
    if penalty.placed == "reward":
        return value
    if penalty.ratio == "differentiated":
        return value[0] - slope[0], value[1] - slope[1]
    return -slope[0], -slope[1]


def _effective(
    sums: StepSums, tokens: Spectrum, c: Array, of_c: tuple[float, float]
) -> tuple[float, float]:
    """cov(c, t) / var(t) and its standard error, from the sums of c and of c d."""
    n, d = sums.n, sums.d
    slope, squares = _slope(sums, of_c), sums.d2 - d * d / n
    if math.isnan(slope):
        return math.nan, math.nan
    off = d / n - tokens.d  # t less its mean
    influence = (c - of_c[0] / n - slope * off) * off
    return slope, _clustered_error(influence, sums, tokens) / squares


def _slope(sums: StepSums, of_c: tuple[float, float]) -> float:
    """cov(c, t) / var(t) from the sums of c and of c d; nan where all t are alike."""
    n, d = sums.n, sums.d
    squares = sums.d2 - d * d / n
    return -(of_c[1] - of_c[0] * d / n) / squares if squares > 0 else math.nan


def _clustered_error(influence: Array, sums: StepSums, tokens: Spectrum) -> float:
    """Standard error of a sum over tokens whose expectation is 0, tokens clustered.

    A slope's error is that of its influence function (White, Econometrica 48, 1980), which is not
    summed by cluster. But T, k1 and k3 are: what of the influence is a combination of them has its
    exact cluster error, the rest is taken as independent between tokens.

    Args:
        influence: [M], of the spectrum's tokens.
        sums: the pair's.
        tokens: the spectrum.
    """
    clusters = sums.clustered.count
    basis = np.stack([np.ones_like(tokens.d), -tokens.d, np.expm1(tokens.d) - tokens.d], axis=1)
    weighted = tokens.weight[:, None] * basis
    scale = np.sqrt((weighted * basis).sum(axis=0))
    if not clusters > 1 or not (np.isfinite(scale).all() and np.isfinite(influence).all()):
        return math.nan
    scale[scale == 0] = 1.0
    normal = basis.T @ weighted / np.outer(scale, scale)  # lstsq of 3 x 3: singular is allowed
    shares = np.linalg.lstsq(normal, influence @ weighted / scale, rcond=None)[0] / scale
    rest = influence - basis @ shares
    weights = np.array([shares[0], shares[1], 0.0, shares[2]])  # on T, S1, S2, S3
    within = float(weights @ np.array(sums.clustered.products) @ weights)
    square = clusters / (clusters - 1) * max(within, 0.0) + float(tokens.weight @ (rest * rest))
    return math.sqrt(square)


def _top_share(size: Array, count: Array, m: int) -> float:
    """Share of sum |c| that the m tokens of largest |c| hold."""
    whole = float(count @ size)
    places = min(SPREAD * m, len(size))  # none holds less than 1 / SPREAD of a token
    largest = np.argpartition(-size, places - 1)[:places]
    largest = largest[np.argsort(-size[largest])]
    before = np.cumsum(count[largest]) - count[largest]
    taken = np.clip(m - before, 0.0, count[largest])
    return float(taken @ size[largest]) / whole if whole > 0 else math.nan


def _share(tokens: Spectrum, which: NDArray[np.bool_]) -> float:
    """Share of the tokens for which something holds."""
    return float(tokens.weight[which].sum() / tokens.weight.sum())
