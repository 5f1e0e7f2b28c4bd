"""Do a few tokens carry the mean? A rule for k1 and another for k3, on sums and extreme tokens.

Both take a handful of tokens o, of k1 = -d or of k3 = expm1(d) - d, and ask what the mean would be
without them:

    V = sum_o (x - mean)^2 / sum (x - mean)^2               their share of the variance
    J = (mean - mean without o) / (s without o / sqrt(N))   their pull, in standard errors
    A = sqrt(j) ln(w_j / w_(j+1))                           how far they stand apart from the rest

**Few.** What a person means: few tokens hold half of it, they stand apart, and they pull. With the
weights w = k3 or, since k1 cancels, w = d^2, o is the j <= 16 tokens of largest weight that hold
half of sum k3 or of sum (k1 - mean)^2, have |J| >= 3, and of these those of largest A (`APART`).

**Far.** What tokens do short of half. k1: the m tokens of largest |d|, m = clip(N / 400, 1, 10);
V and |J| decide, and of more than three tokens |J| >= 3. k3, which is skewed even in clean data, so
that its J is always positive and its V always large: the k <= m tokens, m = clip(log_4(N / 64), 1,
5), that maximise

    score = 3 ln J_k + sqrt(k) ln(x_k / x_{k+1}),   J_k >= 2.

The level is the higher of the two. The tokens named are o where it is few, and else those of the
far rule up to their own largest distance A: no token that is one of the rest is named.

Removing o leaves the standard error of the *rest* in J: dividing by the untrimmed one would let an
outlier hide behind the spread that it makes itself. Rates, families and alternatives that were
measured and dropped: docs/dominance.md; `python benchmarks/dominance.py` measures them again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import itemgetter

from klmonitor.numbers.without import Dominance, at_level, share, unknown, without
from klmonitor.summary.fields import CORE_RADIUS

WARN, SEVERE = 1.0, 2.0

K1_THRESHOLDS = {WARN: (0.3, 2.0), SEVERE: (0.5, 3.0)}
"""Level -> smallest V and smallest |J|."""
HANDFUL = 3
"""More tokens that are far are those of a context that its noise hit, as often as not: they pull by
`FEW_J` errors or are not told."""

K3_THRESHOLDS = {
    #   N: (warn, severe) on the score
    64: (6.7, 9.0),
    128: (5.6, 8.2),
    256: (4.9, 7.5),
    512: (5.5, 7.8),
    1024: (5.2, 7.4),
    4096: (5.2, 7.2),
    16384: (4.9, 6.9),
    65536: (4.8, 8.0),
}
"""Tokens -> smallest score of the two levels, interpolated in ln N, constant beyond the end."""
_LOG_SIZES = tuple(math.log(n) for n in K3_THRESHOLDS)
_K3_WARN, _K3_SEVERE = zip(*K3_THRESHOLDS.values(), strict=True)
_K1 = tuple(K1_THRESHOLDS.values())
K3_SMALLEST_J = 2.0

MOST = 16
"""Tokens that may be few; of each tail as many are exact."""
HALF, FEW_J = 0.5, 3.0
"""Few tokens hold this share of the weights and pull the mean by so many errors of the rest."""
ODD = 2.0
"""Nats: tokens of a larger |d| (a ratio of 7.4) need a smaller distance to be odd."""
APART = {WARN: (1.0, 3.0), SEVERE: (3.0, 6.0)}
"""Level -> smallest A of few tokens of |d| >= `ODD`, and of others."""

FEWEST_TOKENS = 64
"""With fewer no level is given: a largest token then always carries much."""
SMALLEST_LOG_RATIO = 1e-3
"""Nats: a step whose largest |d| is smaller has no dominant token, whatever the shares of its
rounding noise are (an on-policy step is all zeros but for a few last bits)."""
LARGEST_APART = 30.0
"""ln(x_k / x_{k+1}) is capped here; the next token may be exactly 0."""
LARGEST_LOG_RATIO = 350.0
"""Nats: e^d is evaluated at most here, as in the sums."""
_first = itemgetter(0)
LARGEST_VARIANCE = 1e300
"""Squares near it overflow: only k3 of tokens with d > 345 gets there."""


def dominance_k1(
    n: float,
    mean: float,
    var: float,
    sum_abs: float,
    left: Iterable[float],
    right: Iterable[float],
    unlisted: Sequence[float] = (),
) -> Dominance:
    """Is the mean of k1 = -d carried by its tokens of largest |d|?

    Args:
        n: N, tokens counted.
        mean: mean of k1, nats.
        var: sample variance of k1, nats^2 (divisor N - 1).
        sum_abs: sum of |d|, nats.
        left: |d| of the tokens of smallest d < 0, any order; the `MOST` largest at least.
        right: d of the tokens of largest d > 0, likewise.
        unlisted: d of the next token of each tail, to 1 %, where there are more; looked at only
            where few tokens carry much.

    Returns:
        Level 1 at V >= .3 and |J| >= 2 (3 of more than `HANDFUL` tokens), level 2 at V >= .5 and
        |J| >= 3, or that of few tokens.
    """
    if not n > 0:
        return unknown(math.nan)
    if n >= 3 and not var < LARGEST_VARIANCE:
        return unknown(SEVERE)
    most = max(most_tokens(n), most_tokens_k1(n)) + 1  # and the next
    d = sorted(_log_ratios(left, right, most), key=abs, reverse=True)[:most]
    values, weights = [-x for x in d], [x * x for x in d]

    def rest() -> float:
        return max((x * x for x in unlisted), default=0.0)

    def leave(k: int) -> Dominance:
        return without(k, values, n, mean, var, sum_abs)

    m = most_tokens_k1(n)
    found = leave(m)
    level = sum(_far_k1(found, least) for least in K1_THRESHOLDS.values())
    if level:
        far = [one for one in map(leave, range(1, m + 1)) if _far_k1(one, _K1[level - 1])]
        found = max(far, key=lambda one: _apart(int(one.tokens), weights, rest()))
        if found.tokens > HANDFUL and abs(found.j) < FEW_J:
            level = 0
    few = _few(n, d, weights, rest, leave, held=partial(_variance_held, values, n, mean, var))
    return _at_level(few if few.level >= max(level, WARN) else at_level(found, level), n, d)


def dominance_k3(
    n: float,
    mean: float,
    var: float,
    left: Iterable[float],
    right: Iterable[float],
    core_tokens: float = math.nan,
    core_sum: float = math.nan,
    unlisted: Sequence[float] = (),
) -> Dominance:
    """Is the mean of k3 = expm1(d) - d carried by its largest tokens?

    Args:
        n: N, tokens counted.
        mean: mean of k3, nats.
        var: sample variance of k3, nats^2 (divisor N - 1).
        left: |d| of the tokens of smallest d < 0, any order; the `MOST` largest at least.
        right: d of the tokens of largest d > 0, likewise.
        core_tokens: number of tokens with |d| <= 20 nats, if it is known; and then
        core_sum: their sum of k3: so the mean without o is exact beside a token of any size.
        unlisted: d of the next token of each tail, to 1 %, where there are more; looked at only
            where few tokens carry much.

    Returns:
        Few tokens, or the k tokens of the largest score with the level that `K3_THRESHOLDS` gives
        it; those of the largest J if no J reaches 2.
    """
    if not n > 0:
        return unknown(math.nan)
    if n >= 3 and not var < LARGEST_VARIANCE:
        return unknown(SEVERE)
    most = MOST if n != core_tokens else max(most_tokens(n), most_tokens_k3(n)) + 1
    listed = _log_ratios(left, right, most)
    both = sorted([(_k3(x), x) for x in listed], key=_first, reverse=True)
    k3, d = [one for one, _ in both], [x for _, x in both]

    def rest() -> float:
        return max(map(_k3, unlisted), default=0.0)

    def leave(k: int) -> Dominance:
        return without(k, k3, n, mean, var, n * mean)

    found = leave(1)
    score = k3_score(found)
    for k in range(2, most_tokens_k3(n) + 1):
        other = leave(k)
        others = k3_score(other)
        if others > score or (others == score and other.j > found.j):
            found, score = other, others
    level = float(sum(score >= least for least in k3_thresholds(n)))
    few = _few(n, d, k3, rest, leave, held=lambda k: share(math.fsum(k3[:k]), n * mean))
    found = few if few.level >= max(level, WARN) else at_level(found, level)
    if found.tokens > 0 and n - found.tokens >= 2:
        exact = _mean_outside_core(d, k3, int(found.tokens), n, core_tokens, core_sum)
        if not math.isnan(exact):
            found = found._replace(mean_without_top=exact)
    return _at_level(found, n, d)


def _variance_held(values: Sequence[float], n: float, mean: float, var: float, k: int) -> float:
    """V of the first k of some values."""
    return share(sum([(x - mean) ** 2 for x in values[:k]]), (n - 1) * var)


def _few(
    n: float,
    d: Sequence[float],
    weights: Sequence[float],
    rest: Callable[[], float],
    leave: Callable[[int], Dominance],
    held: Callable[[int], float],
) -> Dominance:
    """The few tokens that hold half, pull the mean and stand apart; level 0: there are none.

    Args:
        n: N.
        d: the listed tokens, largest weight first.
        weights: theirs.
        rest: gives the largest weight of a token that is not listed, as far as it is known.
        leave: their numbers together, by how many they are.
        held: the share of all weights that the first k hold, growing with k.
    """
    most = min(most_tokens(n), len(d))
    best, nothing = -math.inf, unknown(0.0)
    found = nothing
    if not most or not held(most) >= HALF:
        return nothing
    for k in range(1, most + 1):
        if not held(k) >= HALF:
            continue
        one, apart = leave(k), _apart(k, weights, rest())
        odd = 0 if abs(d[k - 1]) >= ODD else 1
        level = sum(apart >= least[odd] for least in APART.values())
        if level and abs(one.j) >= FEW_J and (level, apart) > (found.level, best):
            found, best = at_level(one, level), apart
    return found


def _apart(k: int, weights: Sequence[float], rest: float) -> float:
    """A of the first k tokens: sqrt(k) ln(w_k / w_(k+1))."""
    outside = max(rest, weights[k] if len(weights) > k else 0.0)
    if outside == 0:
        return LARGEST_APART
    if math.isinf(outside):
        return -math.inf
    return math.sqrt(k) * min(math.log(weights[k - 1] / outside), LARGEST_APART)


def _far_k1(found: Dominance, least: tuple[float, float]) -> bool:
    """Whether V and |J| of some tokens reach a level of `K1_THRESHOLDS`."""
    return found.v >= least[0] and abs(found.j) >= least[1]


def k3_thresholds(n: float) -> tuple[float, float]:
    """Smallest scores of the levels warn and severe at N = n tokens."""
    at = math.log(max(n, 1.0))
    upper = 1
    while upper < len(_LOG_SIZES) - 1 and _LOG_SIZES[upper] < at:
        upper += 1
    below, above = _LOG_SIZES[upper - 1], _LOG_SIZES[upper]
    weight = min(max((at - below) / (above - below), 0.0), 1.0)
    rest = 1.0 - weight
    return (
        rest * _K3_WARN[upper - 1] + weight * _K3_WARN[upper],
        rest * _K3_SEVERE[upper - 1] + weight * _K3_SEVERE[upper],
    )


def k3_score(found: Dominance) -> float:
    """3 ln J + sqrt(k) ln apart, or -inf below the smallest J."""
    if not found.j >= K3_SMALLEST_J:
        return -math.inf
    apart = min(math.log(found.apart), LARGEST_APART)
    return 3 * math.log(found.j) + math.sqrt(found.tokens) * apart


def most_tokens(n: float) -> int:
    """How many of N = n tokens may be few: N / 128 odd ones, and more of the other tail."""
    return min(max(int(n // 64) - 2, 1), MOST)


def most_tokens_k1(n: float) -> int:
    """How many tokens o may have among N = n: more would reach into the clean tail."""
    return min(max(int(n // 400), 1), 10)


def most_tokens_k3(n: float) -> int:
    """Likewise for k3."""
    return min(max(round(math.log(n / 64) / math.log(4)), 1), 5)


def _mean_outside_core(
    d: Sequence[float],
    k3: Sequence[float],
    k: int,
    n: float,
    core_tokens: float,
    core_sum: float,
) -> float:
    """Mean k3 without the first k tokens; nan if a token beyond the core is not listed."""
    if n == core_tokens:
        return (core_sum - sum(k3[:k])) / (n - k)
    far = [abs(x) > CORE_RADIUS for x in d]
    if sum(far) != n - core_tokens:  # or it is not known
        return math.nan
    inside = core_sum - sum(x for x, beyond in zip(k3[:k], far, strict=False) if not beyond)
    outside = sum(x for x, beyond in zip(k3[k:], far[k:], strict=True) if beyond)
    return (inside + outside) / (n - k)


def _at_level(found: Dominance, n: float, d: Sequence[float]) -> Dominance:
    """At level 0 for too few tokens or where every |d| is rounding noise."""
    if n < FEWEST_TOKENS or not d or max(map(abs, d)) < SMALLEST_LOG_RATIO:
        return at_level(found, 0.0)
    return found


def _log_ratios(left: Iterable[float], right: Iterable[float], most: int) -> list[float]:
    """The extreme tokens of both tails as d, as many of each at most."""
    tails = (sorted(map(float, tail), reverse=True)[:most] for tail in (left, right))
    low, high = tails
    return [*[-x for x in low], *high]


def _k3(d: float) -> float:
    """k3 of an extreme token; its rounding below |d| = 1e-5 does not matter here."""
    return math.expm1(min(d, LARGEST_LOG_RATIO)) - d
