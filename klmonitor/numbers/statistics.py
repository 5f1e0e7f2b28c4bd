"""From sums to numbers, for one pair: means, cluster standard errors, variances, quantiles.

Torch-free: works on the host copy of a summary's sums, as numpy arrays. All values are nats (or
nats^2) per token unless a name says otherwise; what nothing was counted for is nan. What is called
at every step is written in the part of Python that Numba compiles (`klmonitor.compiled`).

Notation (as in `docs/estimators.md`): x ~ q, d = log p - log q, e^d = p/q = 1 + d + k3.
"""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np

from klmonitor.numbers import dominance
from klmonitor.numbers.buckets import MIDDLES, Array, draw, edge_index
from klmonitor.numbers.dominance import LISTED, dominance_k1, dominance_k3
from klmonitor.numbers.metrics import FIELDS, QUANTILES
from klmonitor.summary.fields import CENTRE, COLUMNS, POLICY_COUNTS

Weights: TypeAlias = tuple[float, float, float, float]

K1 = (0.0, 1.0, 0.0, 0.0)
K2 = (0.0, 0.0, 1.0, 0.0)
K3 = (0.0, 0.0, 0.0, 1.0)
GAP = (0.0, -1.0, 0.0, 1.0)
"""Weights on (T, S1, S2, S3): k3 - k1 = e^d - 1, whose expectation is 0 when x ~ q."""
K2_BIAS = (0.0, -1.0, 1.0, 0.0)
ROUNDING = 1e-12
"""A mean below this share of its absolute terms is what float64 sums leave of 0."""
MIN_PROMPTS = 2
"""The spread of one prompt cannot be told: the errors are by sequence then, for this prompt alone.
"""
LOW_PRECISION = 0.99
"""Share of the values below -1/64 that a policy of low precision has in its format."""


def _places(name: str, fields: Sequence[str]) -> Any:
    return namedtuple(name, fields)(*range(len(fields)))  # noqa: PYI024  # fields from a table


C = _places("C", [name.replace("/", "_").replace(".", "_") for name in COLUMNS])
"""Where each of `summary.fields.COLUMNS` is among the sums of a pair."""
AT = _places("AT", FIELDS)
"""Where each metric of `metrics.COMPUTED` is among the numbers of a pair."""

# The compiler sees globals as constants.
N_RUNNING = 7
"""Of a running sum: n, then S1 and S2 of k1, k2, k3."""
ONE, TWO, FIVE, TEN = (edge_index(threshold) for threshold in (1.0, 2.0, 5.0, 10.0))
P01, P1, P50, P99, P999 = (probability for probability, _ in QUANTILES)
N, NONZERO, POSITIVE, CHECKED, BF16, FP16 = (
    POLICY_COUNTS.index(name) for name in ("n", "nonzero", "positive", "checked", "bf16", "fp16")
)


def ratio(numerator: float, denominator: float) -> float:
    """Nan instead of a division by nothing."""
    return numerator / denominator if denominator > 0 else math.nan


def positive(value: float) -> float:
    """A variance that rounding made negative is 0; nan stays nan."""
    return 0.0 if value < 0 else value


def normal_deviate(t: float, df: float) -> float:
    """The normal deviate of the same tail as Student's t with `df` degrees of freedom.

    Few clusters give a rough standard error, and a large ratio to it by chance. Wallace (Annals of
    Mathematical Statistics 30, 1959): for |t| from 2 to 1000 too small by at most 11 % at df = 1,
    5 % at 3, 2 % at 7.
    """
    if not df > 0 or math.isnan(t):
        return math.nan
    size = math.sqrt(df * math.log1p(t * t / df)) * (8 * df + 1) / (8 * df + 3)
    return math.copysign(size, t)


def sequence_totals(s: Array) -> Weights:
    """Totals of (T, S1, S2, S3)."""
    return (
        s[C.core_n] + s[C.tail_n],
        -(s[C.core_d] + s[C.tail_d]),
        0.5 * (s[C.core_d2] + s[C.tail_d2]),
        s[C.core_k3] + s[C.tail_k3],
    )


def mean_of(weights: Weights, totals: Weights) -> float:
    """Token mean of a combination of (T, k1, k2, k3)."""
    (a, b, c, d), (t, s1, s2, s3) = weights, totals
    return ratio(a * t + b * s1 + c * s2 + d * s3, t)


def gram(s: Array) -> Array:
    """[4, 4] sums over sequences of products of (T, S1, S2, S3)."""
    return np.array(
        (
            (s[C.t_t], s[C.t_k1], s[C.t_k2], s[C.t_k3]),
            (s[C.t_k1], s[C.k1_k1], s[C.k1_k2], s[C.k1_k3]),
            (s[C.t_k2], s[C.k1_k2], s[C.k2_k2], s[C.k2_k3]),
            (s[C.t_k3], s[C.k1_k3], s[C.k2_k3], s[C.k3_k3]),
        )
    )


def prompt_rows(s: Array, prompts: Array) -> Array:
    """[prompts, 4] sums by prompt, of [groups, buckets, 4]; none unless each sequence has one."""
    groups, buckets, size = prompts.shape
    rows = prompts.reshape(groups * buckets, size)
    if not s[C.prompted] > 0 or s[C.prompted] != s[C.sequences]:
        return rows[:0]
    return rows[np.flatnonzero(rows[:, 0])]


def clusters(s: Array, rows: Array) -> tuple[float, Array]:
    """B and the [4, 4] sums of products over clusters: prompts where there are enough.

    Args:
        s: [COLUMNS], sums of a pair.
        rows: `prompt_rows`.
    """
    products = gram(s)
    if len(rows) < MIN_PROMPTS:
        return s[C.sequences], products
    for i in range(4):
        for j in range(4):
            products[i, j] = (rows[:, i] * rows[:, j]).sum()
    return float(len(rows)), products


def standard_error(
    weights: Weights, mean: float, tokens: float, count: float, products: Array
) -> float:
    """Standard error of sum(weights . S) / sum(T), a ratio of sums over clusters.

    SE^2 = B/(B-1) sum_i (S_i - mean T_i)^2 / (sum T)^2 (linearised ratio estimator, Cochran,
    Sampling Techniques, section 6.3); nan for fewer than two clusters.

    Args:
        weights: on (T, S1, S2, S3).
        mean: the ratio.
        tokens: sum of T.
        count: B, the clusters that have tokens.
        products: [4, 4] sums over clusters of the products of (T, S1, S2, S3).
    """
    if count < 2 or not tokens > 0:
        return math.nan
    v = (weights[0] - mean, weights[1], weights[2], weights[3])
    squares = 0.0
    for i in range(4):
        if v[i] == 0:
            continue
        for j in range(4):
            if v[j] != 0:
                squares += v[i] * v[j] * products[i, j]
    return math.sqrt(count / (count - 1) * positive(squares)) / tokens


def standard_score(
    weights: Weights, magnitude: float, totals: Weights, count: float, products: Array
) -> float:
    """A mean over its standard error, as a normal deviate; 0 where the mean is rounding noise.

    Args:
        weights: on (T, S1, S2, S3).
        magnitude: mean of the absolute terms of the mean, nats.
        totals: of (T, S1, S2, S3).
        count: B.
        products: as for `standard_error`.
    """
    mean = mean_of(weights, totals)
    if abs(mean) <= ROUNDING * magnitude:
        return 0.0
    se = standard_error(weights, mean, totals[0], count, products)
    return normal_deviate(ratio(mean, se), count - 1)


def variance(first: float, second: float, n: float) -> float:
    """Sample variance of n values from their sum and the sum of their squares."""
    mean = ratio(first, n)
    return positive(ratio(second - n * mean * mean, n - 1))


def quantile(cumulative: Array, probability: float, n: float, low: float, high: float) -> float:
    """D at rank ceil(probability x N), to 0.8 % of its value (numpy's ``inverted_cdf``)."""
    if not n > 0:
        return math.nan
    rank = max(math.ceil(probability * n), 1) - 0.5
    return float(min(max(MIDDLES[np.searchsorted(cumulative, rank)], low), high))


def low_format(counts: Array) -> int:
    """The index of bf16 or fp16 in `POLICY_COUNTS` if a policy's log-probs have it, else 0."""
    for name in (BF16, FP16):
        if counts[CHECKED] > 0 and counts[name] >= LOW_PRECISION * counts[CHECKED]:
            return name
    return 0


def top_sequence_share(s: Array, mean: float, sequences: Array) -> float:
    """Largest share of sum_i (S1_i - mean T_i)^2 that one sequence holds.

    Args:
        s: [COLUMNS], sums of a pair.
        mean: of k1, nats.
        sequences: [n, SEQUENCE_FIELDS], the most influential ones.
    """
    whole = s[C.k1_k1] - 2 * mean * s[C.t_k1] + mean * mean * s[C.t_t]
    if not whole > 0:
        return math.nan
    largest = -1.0
    for i in range(len(sequences)):
        if sequences[i, 0] >= 0:
            largest = max(largest, abs(sequences[i, 5] - mean * sequences[i, 4]))
    return min(largest * largest / whole, 1.0) if largest >= 0 else math.nan


def advance(running: Array, decay: float, s: Array) -> None:
    """Let running sums forget, and add a step's tokens up to `CORE_RADIUS`, in place."""
    if not s[C.core_n] > 0:
        return
    running *= decay
    running[0] += s[C.core_n]
    running[1] -= s[C.core_d]
    running[2] += 0.5 * s[C.core_d2]
    running[3] += s[C.core_k3]
    running[4] += s[C.core_d2]
    running[5] += 0.25 * s[C.core_d4]
    running[6] += s[C.core_k3k3]


def running_mean(running: Array, estimator: int) -> float:
    """Of k1, k2 or k3: estimator 1, 2 or 3."""
    return ratio(running[estimator], running[0])


def running_var(running: Array, estimator: int) -> float:
    """Likewise, nats^2."""
    mean = running_mean(running, estimator)
    return positive(ratio(running[3 + estimator], running[0]) - mean * mean)


def pair_numbers(
    sums: Array,
    histogram: Array,
    prompts: Array,
    q: Array,
    p: Array,
    maxima: Array,
    tokens: Array,
    sequences: Array,
    running: Array,
    decay: float,
    out: Array,
    drawn: Array,
) -> None:
    """Write every number of a pair at a step that follows from its sums.

    Args:
        sums: [groups, COLUMNS].
        histogram: [HISTOGRAM] counts of d by bucket.
        prompts: [groups, buckets, 4] sums by prompt.
        q: [POLICY_COUNTS] of the pair's first policy.
        p: of its second.
        maxima: the largest d and the largest -d.
        tokens: [2, top, TOKEN_FIELDS], the extreme tokens of both tails, largest first.
        sequences: [top, SEQUENCE_FIELDS].
        running: [N_RUNNING] running sums, to which the step's tokens are added.
        decay: of the running sums before; nan: add nothing to them.
        out: [COMPUTED], written to.
        drawn: [N_DRAWN] counts of a coarse histogram, written to.
    """
    nan = math.nan
    s = sums[0].copy()
    for group in range(1, len(sums)):
        s += sums[group]
    if not math.isnan(decay):
        advance(running, decay, s)
    totals = sequence_totals(s)
    n, k3 = totals[0], totals[3]
    d, d2 = s[C.core_d] + s[C.tail_d], s[C.core_d2] + s[C.tail_d2]
    absolute, dk3 = s[C.core_abs] + s[C.tail_abs], s[C.core_dk3] + s[C.tail_dk3]
    d4, k3k3 = s[C.core_d4] + s[C.tail_d4], s[C.core_k3k3] + s[C.tail_k3k3]
    on_policy = s[C.on_policy] == n

    rows = prompt_rows(s, prompts)
    count, products = clusters(s, rows)
    mean_k1, mean_k2, mean_k3 = mean_of(K1, totals), mean_of(K2, totals), mean_of(K3, totals)
    var_k1, var_k3 = variance(d, d2, n), variance(k3, k3k3, n)
    k2_magnitude = ratio(absolute + 0.5 * d2, n)
    gap, gap_magnitude = mean_of(GAP, totals), ratio(absolute + k3, n)
    gap_z = standard_score(GAP, gap_magnitude, totals, count, products)
    cov_d_k3 = ratio(dk3 - d * ratio(k3, n), n - 1)
    var_ratio = positive(var_k1 + var_k3 + 2 * cov_d_k3)  # of r - 1 = d + k3
    cov_ratio = -var_k1 - cov_d_k3  # of k1 = -d and r - 1
    optimum = ratio(-cov_ratio, var_ratio)
    if not math.isnan(optimum):
        optimum = min(max(optimum, 0.0), 1.0)
    best = nan
    if on_policy and not math.isnan(optimum):
        failed = abs(gap_z) > 5 and abs(gap) > 0.1 * mean_k3  # q hardly drew these tokens
        best = 1.0 if optimum < 0.5 or failed else 3.0
    sum_r, sum_r2 = n + d + k3, n + d2 + k3k3 + 2 * (d + k3 + dk3)

    cumulative = np.cumsum(histogram)
    counted = cumulative[-1]
    draw(cumulative, drawn)
    low, high = -maxima[1], maxima[0]
    le2, ge2 = cumulative[CENTRE - TWO - 1], counted - cumulative[CENTRE + TWO - 1]

    left, right = tokens[0, :LISTED, 0], tokens[1, :LISTED, 0]
    left, right = left[left > 0], right[right > 0]
    of_k1 = dominance_k1(n, mean_k1, var_k1, absolute, left, right)
    of_k3 = dominance_k3(n, mean_k3, var_k3, left, right, s[C.core_n], s[C.core_k3])
    out[AT.k1_mean] = mean_k1
    out[AT.k1_se] = standard_error(K1, mean_k1, n, count, products)
    out[AT.k1_var] = var_k1
    out[AT.k1_running_mean] = running_mean(running, 1)
    out[AT.k1_running_var] = running_var(running, 1)
    out[AT.k2_mean] = mean_k2
    out[AT.k2_se] = standard_error(K2, mean_k2, n, count, products)
    out[AT.k2_var] = variance(0.5 * d2, 0.25 * d4, n)
    out[AT.k2_running_mean] = running_mean(running, 2)
    out[AT.k2_running_var] = running_var(running, 2)
    out[AT.k3_mean] = mean_k3
    out[AT.k3_se] = standard_error(K3, mean_k3, n, count, products)
    out[AT.k3_var] = var_k3
    out[AT.k3_running_mean] = running_mean(running, 3)
    out[AT.k3_running_var] = running_var(running, 3)
    out[AT.k1_negative_share] = ratio(counted - cumulative[CENTRE - 1] - s[C.zero], n)
    out[AT.k1_cancellation] = 1 - ratio(abs(d), absolute)
    out[AT.k2_bias] = mean_of(K2_BIAS, totals)
    out[AT.k2_bias_z] = standard_score(K2_BIAS, k2_magnitude, totals, count, products)
    out[AT.gap] = gap if on_policy else nan
    out[AT.gap_z] = gap_z if on_policy else nan
    out[AT.cv_lambda] = optimum
    out[AT.cv_corr] = ratio(cov_ratio, math.sqrt(var_k1 * var_ratio))
    out[AT.cv_variance_ratio] = ratio(var_k3, var_k1)
    out[AT.best] = best
    out[AT.tokens] = n
    out[AT.sequences] = s[C.sequences]
    out[AT.clusters] = count
    out[AT.prompts] = float(len(rows)) if len(rows) else nan
    out[AT.on_policy] = 1.0 if on_policy else 0.0
    out[AT.ess] = ratio(sum_r * sum_r, n * sum_r2)
    out[AT.iw_k1_mean] = nan if on_policy else ratio(-s[C.wd], s[C.w])
    out[AT.iw_k3_mean] = nan if on_policy else ratio(s[C.wk3], s[C.w])
    out[AT.iw_ess] = nan if on_policy else ratio(s[C.w] * s[C.w], n * s[C.ww])
    out[AT.nonfinite] = s[C.nan] + s[C.inf]
    out[AT.positive_logp] = q[POSITIVE] + p[POSITIVE]
    out[AT.zero_logp] = q[N] - q[NONZERO] + p[N] - p[NONZERO]
    out[AT.identical] = ratio(s[C.zero], n)
    out[AT.clamped] = s[C.clamped]
    out[AT.low_precision] = 1.0 if low_format(q) or low_format(p) else 0.0
    out[AT.outliers_k1] = le2
    out[AT.outliers_k3] = ge2
    out[AT.outliers_rate] = 1e4 * ratio(le2 + ge2, n)
    out[AT.log_ratio_le_1] = cumulative[CENTRE - ONE - 1]
    out[AT.log_ratio_ge_1] = counted - cumulative[CENTRE + ONE - 1]
    out[AT.log_ratio_le_2] = le2
    out[AT.log_ratio_ge_2] = ge2
    out[AT.log_ratio_le_5] = cumulative[CENTRE - FIVE - 1]
    out[AT.log_ratio_ge_5] = counted - cumulative[CENTRE + FIVE - 1]
    out[AT.log_ratio_le_10] = cumulative[CENTRE - TEN - 1]
    out[AT.log_ratio_ge_10] = counted - cumulative[CENTRE + TEN - 1]
    out[AT.log_ratio_p0_1] = quantile(cumulative, P01, n, low, high)
    out[AT.log_ratio_p1] = quantile(cumulative, P1, n, low, high)
    out[AT.log_ratio_p50] = quantile(cumulative, P50, n, low, high)
    out[AT.log_ratio_p99] = quantile(cumulative, P99, n, low, high)
    out[AT.log_ratio_p99_9] = quantile(cumulative, P999, n, low, high)
    out[AT.log_ratio_min] = low if n > 0 else nan
    out[AT.log_ratio_max] = high if n > 0 else nan
    out[AT.log_ratio_excluded] = s[C.tail_n]
    out[AT.dominance_k1_level] = of_k1.level
    out[AT.dominance_k1_tokens] = of_k1.tokens
    out[AT.dominance_k1_v] = of_k1.v
    out[AT.dominance_k1_j] = of_k1.j
    out[AT.dominance_k1_top_share] = of_k1.top_share
    out[AT.k1_mean_without_top] = of_k1.mean_without_top
    out[AT.dominance_k3_level] = of_k3.level
    out[AT.dominance_k3_tokens] = of_k3.tokens
    out[AT.dominance_k3_v] = of_k3.v
    out[AT.dominance_k3_j] = of_k3.j
    out[AT.dominance_k3_top_share] = of_k3.top_share
    out[AT.k3_mean_without_top] = of_k3.mean_without_top
    out[AT.dominance_level] = max(of_k1.level, of_k3.level)
    out[AT.dominance_top_sequence_share] = top_sequence_share(s, mean_k1, sequences)
    out[AT.sequence_k1] = ratio(-d, s[C.sequences])
    out[AT.sequence_k3] = ratio(k3, s[C.sequences])


HELPERS = (
    *dominance.HELPERS,
    *(ratio, positive, normal_deviate, sequence_totals, mean_of, gram, prompt_rows, clusters),
    *(standard_error, standard_score, variance, quantile, low_format, top_sequence_share),
    *(advance, running_mean, running_var, draw),
)
"""For the compiler: what `pair_numbers` calls."""


def below(histogram: Array, log_ratio: float) -> float:
    """Tokens with d < `log_ratio`, any: to the 0.8 % of a bucket's middle."""
    return float(histogram[: int(np.searchsorted(MIDDLES, log_ratio))].sum())


def group_values(group: str, s: Array, prompts: Array) -> dict[str, float]:
    """k1 and k3 of one group with their standard errors; empty where it has no tokens.

    Args:
        group: its name.
        s: [COLUMNS], its sums.
        prompts: [1, buckets, 4], its sums by prompt.
    """
    totals = sequence_totals(s)
    if not totals[0] > 0:
        return {}
    count, products = clusters(s, prompt_rows(s, prompts))
    values: dict[str, float] = {}
    for name, weights in (("k1", K1), ("k3", K3)):
        mean = mean_of(weights, totals)
        values[f"group/{group}/{name}/mean"] = mean
        values[f"group/{group}/{name}/se"] = standard_error(
            weights, mean, totals[0], count, products
        )
    return values


def t_quantile(probability: float, df: float) -> float:
    """Quantile of Student's t, to 4e-3 (Abramowitz-Stegun 26.7.5; exact for one and two df)."""
    if df == 1:
        return math.tan(math.pi * (probability - 0.5))
    if df == 2:
        return (2 * probability - 1) * math.sqrt(2 / (4 * probability * (1 - probability)))
    z = NormalDist().inv_cdf(probability)
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    g4 = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + g1 / df + g2 / df**2 + g3 / df**3 + g4 / df**4


def interval(mean: float, se: float, count: float, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of a cluster mean: t with count - 1 degrees of freedom."""
    if not count > 1 or math.isnan(se):
        return (math.nan, math.nan)
    half = t_quantile(0.5 + level / 2, count - 1) * se
    return (mean - half, mean + half)
