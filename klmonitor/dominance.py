"""Do a few tokens carry the mean? A rule for k1 and another for k3, on sums and extreme tokens.

Both rules look at a handful of tokens o and ask what the mean would be without them:

    V = sum_o (x - mean)^2 / sum (x - mean)^2               their share of the variance
    J = (mean - mean without o) / (s without o / sqrt(N))   their pull, in standard errors

J is in standard errors of the *rest*: with the whole's, outliers hide behind the spread that they
make themselves. For the same reason o must not leave some of a group outside.

k1 suffers on the left tail of d and can be pulled either way. o is the m tokens of largest |d|, m =
clip(N / 400, 1, 10), and V together with |J| decides; or a larger group, of up to 15 tokens, if it
stands apart from the next token and reaches the severe level.

k3 is never negative and skewed even in clean data: its J is always positive, its V always large,
and what tells a few odd tokens from an ordinary tail is how far they stand apart. With x_1 >= x_2
>= ... the largest values of k3, o is the k tokens with J_k >= 2 that maximise

    score = 3 ln J_k + sqrt(k) ln(x_k / x_{k+1}) - penalty,

the penalty being 0 for k <= m = clip(log_4(N / 64), 1, 5), and 3 + (k - m) / 2 for more, up to 15.

Rates, families and the alternatives that were measured and dropped: docs/dominance.md;
`python benchmarks/dominance.py` measures them again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from klmonitor.summary.layout import CORE_RADIUS

WARN, SEVERE = 1.0, 2.0

K1_THRESHOLDS = {WARN: (0.3, 2.0), SEVERE: (0.5, 3.0)}
"""Level -> smallest V and smallest |J|."""
K1_APART = 1.5
"""How many times |d| of the next token the smallest of a group of more than m must have."""

K3_THRESHOLDS = {
    #   N: (warn, severe) on the score
    64: (6.7, 9.0),
    128: (5.6, 8.6),
    256: (4.9, 8.2),
    512: (5.5, 8.0),
    1024: (5.2, 7.6),
    4096: (5.2, 7.8),
    16384: (4.9, 7.5),
    65536: (5.2, 8.4),
}
"""Tokens -> smallest score of the two levels, interpolated in ln N, constant beyond the end."""
K3_SMALLEST_J = 2.0

LARGEST_GROUP = 15
"""The most tokens that o may have (and N / 32): a summary lists 16 of each tail."""
FEWEST_TOKENS = 64
"""With fewer no level is given: a largest token then always carries much."""
SMALLEST_LOG_RATIO = 1e-3
"""Nats: a step whose largest |d| is smaller has no dominant token, whatever the shares of its
rounding noise are (an on-policy step is all zeros but for a few last bits)."""
LARGEST_APART = 30.0
"""ln(x_k / x_{k+1}) is capped here; the next token may be exactly 0."""
LARGEST_LOG_RATIO = 350.0
"""Nats: e^d is evaluated at most here, as in the sums."""
LARGEST_VARIANCE = 1e300
"""Squares near it overflow: only k3 of tokens with d > 345 gets there."""
RESOLUTION = 1e-13
"""What float64 sums resolve of themselves. A rest smaller than this share is not known from them:
its spread is taken as this share of the whole, so that J is a lower bound (and 0 for constants)."""
NEGLIGIBLE = 1e-9
"""Nats: an uncertainty of the mean without o that nobody minds; where it is larger, and above
0.1 % of that mean, the mean is nan."""


@dataclass(frozen=True)
class Dominance:
    """How far a few tokens o carry an estimator's mean; every field is nan if nothing counted.

    Attributes:
        level: 0 none, 1 warn, 2 severe.
        tokens: how many tokens o has.
        v: share of sum (x - mean)^2 held by o.
        j: (mean - mean without o) / (s without o / sqrt(N)), standard errors.
        top_share: share of sum |x| held by o.
        mean_without_top: mean of the tokens outside o, nats; nan where the sums cannot resolve it
            (k3 beside a token of d > 30, unless the sums of the core are given).
        apart: ratio of the smallest |x| in o to the largest outside it.
    """

    level: float
    tokens: float
    v: float
    j: float
    top_share: float
    mean_without_top: float
    apart: float


NOTHING = Dominance(*[math.nan] * 7)


def dominance_k1(
    n: float,
    mean: float,
    var: float,
    sum_abs: float,
    left: Iterable[float],
    right: Iterable[float],
) -> Dominance:
    """Is the mean of k1 = -d carried by its tokens of largest |d|?

    Args:
        n: N, tokens counted.
        mean: mean of k1, nats.
        var: sample variance of k1, nats^2 (divisor N - 1).
        sum_abs: sum of |d|, nats.
        left: |d| of the tokens of smallest d < 0, any order; the largest 16 of them at least.
        right: d of the tokens of largest d > 0, likewise.

    Returns:
        Level 1 at V >= .3 and |J| >= 2, level 2 at V >= .5 and |J| >= 3.
    """
    if not n > 0:
        return NOTHING
    if n >= 3 and not var < LARGEST_VARIANCE:
        return replace(NOTHING, level=SEVERE)
    log_ratios = sorted(_log_ratios(left, right), key=abs, reverse=True)
    groups = _groups([-d for d in log_ratios], n, mean, var, sum_abs)
    m = min(usual_tokens(n, "k1"), len(groups) - 1)
    found = max(
        (
            o
            for o in groups[m:]
            if o is groups[m] or (_k1_level(o) == SEVERE and o.apart >= K1_APART)
        ),
        key=lambda o: (_k1_level(o), abs(o.j)),
    )
    return replace(found, level=_k1_level(found) if _judged(n, log_ratios) else 0.0)


def dominance_k3(
    n: float,
    mean: float,
    var: float,
    left: Iterable[float],
    right: Iterable[float],
    core: tuple[float, float] | None = None,
) -> Dominance:
    """Is the mean of k3 = expm1(d) - d carried by its largest tokens?

    Args:
        n: N, tokens counted.
        mean: mean of k3, nats.
        var: sample variance of k3, nats^2 (divisor N - 1).
        left: |d| of the tokens of smallest d < 0, any order; the largest 16 of them at least.
        right: d of the tokens of largest d > 0, likewise.
        core: number and sum of k3 of the tokens with |d| <= 20 nats, if they are known apart:
            then the mean without o is exact beside a token of any size.

    Returns:
        The k tokens of the largest score, with the level that `K3_THRESHOLDS` gives it; the m
        largest if no J reaches 2.
    """
    if not n > 0:
        return NOTHING
    if n >= 3 and not var < LARGEST_VARIANCE:
        return replace(NOTHING, level=SEVERE)
    log_ratios = sorted(_log_ratios(left, right), key=_k3, reverse=True)
    groups = _groups([_k3(d) for d in log_ratios], n, mean, var, n * mean)
    found = max(groups, key=lambda o: k3_score(o, n))
    if k3_score(found, n) == -math.inf:
        found = groups[min(usual_tokens(n, "k3"), len(groups) - 1)]
    score = k3_score(found, n)
    level = sum(score >= least for least in k3_thresholds(n)) if _judged(n, log_ratios) else 0
    found = replace(found, level=float(level))
    if core is not None and 0 < found.tokens <= n - 2:
        mean_of_rest = _mean_outside_core(log_ratios, int(found.tokens), n, *core)
        if not math.isnan(mean_of_rest):
            return replace(found, mean_without_top=mean_of_rest)
    return found


def k3_thresholds(n: float) -> tuple[float, float]:
    """The smallest scores of the levels warn and severe at N = n tokens."""
    sizes = list(K3_THRESHOLDS)
    n = min(max(n, sizes[0]), sizes[-1])
    upper = next(i for i, size in enumerate(sizes) if size >= n)
    lower = max(upper - 1, 0)
    span = math.log(sizes[upper] / sizes[lower])
    weight = math.log(n / sizes[lower]) / span if span else 0.0
    below, above = K3_THRESHOLDS[sizes[lower]], K3_THRESHOLDS[sizes[upper]]
    warn, severe = (a + weight * (b - a) for a, b in zip(below, above, strict=True))
    return warn, severe


def k3_score(found: Dominance, n: float) -> float:
    """3 ln J + sqrt(k) ln apart - penalty, or -inf below the smallest J."""
    if not found.j >= K3_SMALLEST_J:
        return -math.inf
    apart = min(math.log(found.apart), LARGEST_APART)
    more = found.tokens - usual_tokens(n, "k3")
    penalty = 3.0 + more / 2 if more > 0 else 0.0
    return 3 * math.log(found.j) + math.sqrt(found.tokens) * apart - penalty


def usual_tokens(n: float, estimator: str) -> int:
    """m, how many tokens o has among N = n unless a larger group stands out."""
    if estimator == "k1":
        return min(max(int(n // 400), 1), 10)
    return min(max(round(math.log(n / 64, 4)), 1), 5)


def _k1_level(found: Dominance) -> float:
    return float(sum(found.v >= v and abs(found.j) >= j for v, j in K1_THRESHOLDS.values()))


def _judged(n: float, log_ratios: Sequence[float]) -> bool:
    """Not with too few tokens, nor where every |d| is rounding noise."""
    largest = max(map(abs, log_ratios), default=0.0)
    return n >= FEWEST_TOKENS and largest >= SMALLEST_LOG_RATIO


def _groups(
    values: Sequence[float], n: float, mean: float, var: float, sum_abs: float
) -> list[Dominance]:
    """`Dominance`, level 0, of the first 0, 1, 2, ... values; tokens not listed are smaller.

    With D = sum_o (x - mean) and C = sum_o (x - mean)^2, the mean falls by D / (N - k) without o,
    and the sum of squares about it by C + D^2 / (N - k).
    """
    most = max(min(LARGEST_GROUP, int(n // 32)), usual_tokens(n, "k1"))
    listed = values[: min(most, int(n) - 2)] if n > 2 else []
    squares = (n - 1) * var
    unresolved = RESOLUTION * (squares + n * mean**2)
    sums = zip(
        accumulate(x - mean for x in listed),
        accumulate((x - mean) ** 2 for x in listed),
        accumulate(abs(x) for x in listed),
        strict=True,
    )
    groups = [Dominance(0.0, 0.0, 0.0, 0.0, 0.0, mean, math.nan)]
    for k, (d_sum, c_sum, abs_sum) in enumerate(sums, start=1):
        rest = n - k
        shift = d_sum / rest
        spread = math.sqrt(max(squares - c_sum - d_sum * shift, unresolved) / (rest - 1))
        uncertainty = RESOLUTION * sum_abs / rest
        known = uncertainty <= max(1e-3 * abs(mean - shift), NEGLIGIBLE)
        outside = values[k] if k < len(values) else 0.0
        groups.append(
            Dominance(
                level=0.0,
                tokens=float(k),
                v=_share(c_sum, squares),
                j=shift * math.sqrt(n) / spread if spread > 0 else 0.0,
                top_share=_share(abs_sum, sum_abs),
                mean_without_top=mean - shift if known else math.nan,
                apart=abs(values[k - 1] / outside) if outside else math.inf,
            )
        )
    return groups


def _mean_outside_core(
    log_ratios: Sequence[float], k: int, n: float, core_tokens: float, core_sum: float
) -> float:
    """Mean k3 without the first k tokens; nan if a token beyond the core is not listed."""
    far = [d for d in log_ratios if abs(d) > CORE_RADIUS]
    if len(far) != n - core_tokens:
        return math.nan
    top, others = log_ratios[:k], log_ratios[k:]
    inside = core_sum - sum(_k3(d) for d in top if abs(d) <= CORE_RADIUS)
    outside = sum(_k3(d) for d in others if abs(d) > CORE_RADIUS)
    return (inside + outside) / (n - k)


def _share(part: float, whole: float) -> float:
    """Part of a sum, at most 1 for rounding; 0 of nothing."""
    return min(part / whole, 1.0) if whole > 0 else 0.0


def _log_ratios(left: Iterable[float], right: Iterable[float]) -> list[float]:
    """The extreme tokens of both tails as d."""
    return [-float(d) for d in left] + [float(d) for d in right]


def _k3(d: float) -> float:
    """k3 of an extreme token; its rounding below |d| = 1e-5 does not matter here."""
    return math.expm1(min(d, LARGEST_LOG_RATIO)) - d
