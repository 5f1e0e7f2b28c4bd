"""Do a few tokens carry the mean? A rule for k1 and another for k3, on sums and extreme tokens.

Both rules look at a handful of tokens o and ask what the mean would be without them:

    V = sum_o (x - mean)^2 / sum (x - mean)^2               their share of the variance
    J = (mean - mean without o) / (s without o / sqrt(N))   their pull, in standard errors

k1 suffers on the left tail of d and can be pulled either way: o is the m tokens of largest |d|,
m = clip(N / 400, 1, 10), and V together with |J| decides. k3 is never negative and skewed even in
clean data, so its J is always positive and its V always large; there the question is whether the
tokens also stand *apart* from the next one. With x_1 >= x_2 >= ... the largest values of k3, o is
the k <= m tokens, m = clip(log_4(N / 64), 1, 5), that maximise

    score = 3 ln J_k + sqrt(k) ln(x_k / x_{k+1}),   J_k >= 2.

Removing o leaves the standard error of the *rest* in J: dividing by the untrimmed one would let an
outlier hide behind the spread that it makes itself. Rates, families and alternatives that were
measured and dropped: docs/dominance.md; `python benchmarks/dominance.py` measures them again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from klmonitor.summary.layout import CORE_RADIUS

WARN, SEVERE = 1.0, 2.0

K1_THRESHOLDS = {WARN: (0.3, 2.0), SEVERE: (0.5, 3.0)}
"""Level -> smallest V and smallest |J|."""

K3_THRESHOLDS = {
    #   N: (warn, severe) on the score
    64: (6.7, 9.0),
    128: (5.6, 8.2),
    256: (4.9, 7.5),
    512: (5.5, 7.8),
    1024: (5.0, 7.4),
    4096: (5.1, 7.2),
    16384: (4.6, 6.9),
    65536: (4.8, 8.0),
}
"""Tokens -> smallest score of the two levels, interpolated in ln N, constant beyond the end."""
K3_SMALLEST_J = 2.0

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


LISTED = 11
"""Tokens of each tail that the rules look at: the ten largest may dominate, one is outside."""


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
            (k3 beside a token of d > 20 or so, unless the sums of the core are given).
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
        left: |d| of the tokens of smallest d < 0, any order; the `LISTED` largest at least.
        right: d of the tokens of largest d > 0, likewise.

    Returns:
        Level 1 at V >= .3 and |J| >= 2, level 2 at V >= .5 and |J| >= 3.
    """
    if not n > 0:
        return NOTHING
    if n >= 3 and not var < LARGEST_VARIANCE:
        return replace(NOTHING, level=SEVERE)
    log_ratios = sorted(_log_ratios(left, right), key=abs, reverse=True)
    values = [-d for d in log_ratios]
    found = _without(most_tokens(n, "k1"), values, n, mean, var, sum_abs)
    reached = {level: found.v >= v and abs(found.j) >= j for level, (v, j) in K1_THRESHOLDS.items()}
    largest = abs(log_ratios[0]) if log_ratios else 0.0
    return replace(found, level=_level(n, largest, reached))


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
        left: |d| of the tokens of smallest d < 0, any order; the largest 6 of them at least.
        right: d of the tokens of largest d > 0, likewise.
        core: number and sum of k3 of the tokens with |d| <= 20 nats, if they are known apart:
            then the mean without o is exact beside a token of any size.

    Returns:
        The k tokens of the largest score, with the level that `K3_THRESHOLDS` gives it; those of
        the largest J if no J reaches 2.
    """
    if not n > 0:
        return NOTHING
    if n >= 3 and not var < LARGEST_VARIANCE:
        return replace(NOTHING, level=SEVERE)
    listed = sorted(((_k3(d), d) for d in _log_ratios(left, right)), reverse=True)
    values, log_ratios = [k3 for k3, _ in listed], [d for _, d in listed]
    sizes = range(1, most_tokens(n, "k3") + 1)
    candidates = [_without(k, values, n, mean, var, n * mean) for k in sizes]
    found = max(candidates, key=lambda o: (k3_score(o), o.j))
    score = k3_score(found)
    reached = {level: score >= least for level, least in k3_thresholds(n).items()}
    largest = max(map(abs, log_ratios), default=0.0)
    found = replace(found, level=_level(n, largest, reached))
    if core is not None and found.tokens > 0 and n - found.tokens >= 2:
        mean_of_rest = _mean_outside_core(log_ratios, int(found.tokens), n, *core)
        if not math.isnan(mean_of_rest):
            return replace(found, mean_without_top=mean_of_rest)
    return found


def k3_thresholds(n: float) -> dict[float, float]:
    """Level -> smallest score at N = n tokens."""
    sizes = list(K3_THRESHOLDS)
    n = min(max(n, sizes[0]), sizes[-1])
    upper = next(i for i, size in enumerate(sizes) if size >= n)
    lower = max(upper - 1, 0)
    span = math.log(sizes[upper] / sizes[lower])
    weight = math.log(n / sizes[lower]) / span if span else 0.0
    below, above = K3_THRESHOLDS[sizes[lower]], K3_THRESHOLDS[sizes[upper]]
    warn, severe = (a + weight * (b - a) for a, b in zip(below, above, strict=True))
    return {WARN: warn, SEVERE: severe}


def k3_score(found: Dominance) -> float:
    """3 ln J + sqrt(k) ln apart, or -inf below the smallest J."""
    if not found.j >= K3_SMALLEST_J:
        return -math.inf
    apart = min(math.log(found.apart), LARGEST_APART)
    return 3 * math.log(found.j) + math.sqrt(found.tokens) * apart


def most_tokens(n: float, estimator: str) -> int:
    """How many tokens o may have among N = n: more would reach into the clean tail."""
    if estimator == "k1":
        return min(max(int(n // 400), 1), 10)
    return min(max(round(math.log(n / 64, 4)), 1), 5)


def _without(
    k: int, values: Sequence[float], n: float, mean: float, var: float, sum_abs: float
) -> Dominance:
    """The numbers of `Dominance`, level 0, for the first k values; unlisted tokens are smaller."""
    top, outside = values[:k], values[k : k + 1]
    k = len(top)
    rest = n - k
    if not k:
        return Dominance(0.0, 0.0, 0.0, 0.0, 0.0, mean, math.nan)
    if rest < 2:
        return Dominance(0.0, float(k), *[math.nan] * 5)
    mean_of_top = sum(top) / k
    mean_of_rest = (n * mean - sum(top)) / rest
    squares = (n - 1) * var
    between = k * rest / n * (mean_of_top - mean_of_rest) ** 2
    squares_of_rest = squares - between - sum((x - mean_of_top) ** 2 for x in top)
    unresolved = RESOLUTION * (squares + n * mean**2)
    spread = math.sqrt(max(squares_of_rest, unresolved) / (rest - 1))
    uncertainty = RESOLUTION * sum_abs / rest
    known = uncertainty <= max(1e-3 * abs(mean_of_rest), NEGLIGIBLE)
    return Dominance(
        level=0.0,
        tokens=float(k),
        v=_share(sum((x - mean) ** 2 for x in top), squares),
        j=(mean - mean_of_rest) * math.sqrt(n) / spread if spread > 0 else 0.0,
        top_share=_share(sum(abs(x) for x in top), sum_abs),
        mean_without_top=mean_of_rest if known else math.nan,
        apart=abs(top[-1] / outside[0]) if outside and outside[0] else math.inf,
    )


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


def _level(n: float, largest: float, reached: Mapping[float, bool]) -> float:
    """The highest level reached; 0 for too few tokens or where every |d| is rounding noise."""
    if n < FEWEST_TOKENS or largest < SMALLEST_LOG_RATIO:
        return 0.0
    return max((level for level, yes in reached.items() if yes), default=0.0)


def _log_ratios(left: Iterable[float], right: Iterable[float]) -> list[float]:
    """The extreme tokens of both tails as d."""
    return [-float(d) for d in left] + [float(d) for d in right]


def _k3(d: float) -> float:
    """k3 of an extreme token; its rounding below |d| = 1e-5 does not matter here."""
    return math.expm1(min(d, LARGEST_LOG_RATIO)) - d
