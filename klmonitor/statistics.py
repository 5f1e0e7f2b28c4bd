"""From sums to numbers, for one pair: means, cluster standard errors, variances, quantiles.

Torch-free: works on the host copy of a summary's sums, as numpy arrays. All values are nats (or
nats^2) per token unless a name says otherwise; what nothing was counted for is nan.

Notation (as in `docs/estimators.md`): x ~ q, d = log p - log q, e^d = p/q = 1 + d + k3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from klmonitor.summary.layout import (
    BUCKETS,
    CENTRE,
    COLUMN,
    GRAM,
    LOW_EXPONENT,
    MANTISSA_BITS,
    PER_SEQUENCE,
    POLICY_COUNTS,
)

Array = NDArray[np.float64]

K1 = (0.0, 1.0, 0.0, 0.0)
K2 = (0.0, 0.0, 1.0, 0.0)
K3 = (0.0, 0.0, 0.0, 1.0)
GAP = (0.0, -1.0, 0.0, 1.0)
"""Weights on (T, S1, S2, S3): k3 - k1 = e^d - 1, whose expectation is 0 when x ~ q."""
K2_BIAS = (0.0, -1.0, 1.0, 0.0)
MIN_PROMPTS = 8
"""With fewer prompts their spread cannot be told: the errors are by sequence then, conditional on
these prompts."""


@dataclass(frozen=True)
class Clusters:
    """Sums of products over independent clusters (sequences, or prompts).

    Attributes:
        count: B, the clusters that have tokens.
        gram: [4, 4], sum over clusters of the products of (T, S1, S2, S3).
    """

    count: float
    gram: Array

    def standard_error(self, weights: Sequence[float], mean: float, tokens: float) -> float:
        """Standard error of sum(weights . S) / sum(T), a ratio of sums over clusters.

        SE^2 = B/(B-1) sum_i (S_i - mean T_i)^2 / (sum T)^2 (linearised ratio estimator, Cochran,
        Sampling Techniques, section 6.3); nan for fewer than two clusters.
        """
        if self.count < 2 or tokens <= 0:
            return math.nan
        v = np.asarray(weights, dtype=np.float64).copy()
        v[0] -= mean
        squares = max(float(v @ self.gram @ v), 0.0)
        return math.sqrt(self.count / (self.count - 1) * squares) / tokens


@dataclass(frozen=True)
class PairTotals:
    """The sums of one pair over one step (or several, merged), with the numbers they give.

    Attributes:
        sums: [COLUMNS] summed over groups.
        groups: group name -> [COLUMNS].
        histogram: [HISTOGRAM] counts of d by bucket.
        prompts: group name -> [buckets, 4] sums by prompt.
        policy_counts: [POLICY_COUNTS] of q and of p.
        maxima: the largest d and the largest -d.
        tails: |d| of the extreme tokens of the left and the right tail, largest first.
        top_sequences: [n, 2], T and S1 of the most influential sequences.
    """

    sums: Array
    groups: Mapping[str, Array]
    histogram: Array
    prompts: Mapping[str, Array]
    policy_counts: tuple[Array, Array]
    maxima: tuple[float, float]
    tails: tuple[Array, Array]
    top_sequences: Array

    def __getitem__(self, column: str) -> float:
        """A sum by its column name, or of core and tail together by its moment name."""
        if column in self._named:
            return self._named[column]
        return self._named[f"core/{column}"] + self._named[f"tail/{column}"]

    @cached_property
    def _named(self) -> dict[str, float]:
        return dict(zip(COLUMN, self.sums.tolist(), strict=True))

    @cached_property
    def _cumulative(self) -> Array:
        """Tokens up to and including each bucket of d."""
        return np.cumsum(self.histogram)

    @cached_property
    def _per_sequence(self) -> tuple[float, ...]:
        """Totals of (T, S1, S2, S3)."""
        return (self.n, -self["d"], 0.5 * self["d2"], self["k3"])

    # --- sizes -----------------------------------------------------------------------------
    @cached_property
    def n(self) -> float:
        """Tokens counted."""
        return self["n"]

    @cached_property
    def clusters(self) -> Clusters:
        """Prompts where every sequence came with one and there are enough, else sequences."""
        return clusters(self.sums, list(self.prompts.values()))

    @property
    def n_prompts(self) -> float:
        """Distinct prompts (as told apart by their buckets); nan where some are not known."""
        return float(len(prompt_rows(self.sums, list(self.prompts.values())))) or math.nan

    @property
    def on_policy(self) -> bool:
        """Whether q itself drew the tokens."""
        return self["on_policy"] == self.n

    # --- moments ---------------------------------------------------------------------------
    def mean(self, weights: Sequence[float]) -> float:
        """Token mean of a combination of (T, k1, k2, k3)."""
        return ratio(sum(w * s for w, s in zip(weights, self._per_sequence, strict=True)), self.n)

    def se(self, weights: Sequence[float]) -> float:
        """Cluster standard error of `mean`."""
        return self.clusters.standard_error(weights, self.mean(weights), self.n)

    def z(self, weights: Sequence[float]) -> float:
        """`mean` over its standard error; 0 where both are 0."""
        mean, se = self.mean(weights), self.se(weights)
        if mean == 0.0 and se == 0.0:
            return 0.0
        return ratio(mean, se)

    def variance(self, first: str, second: str, squares: float = 1.0, scale: float = 1.0) -> float:
        """Sample variance of a token value from its sums: scale x moment, squares x moment."""
        mean = ratio(scale * self[first], self.n)
        return ratio(squares * self[second] - self.n * mean * mean, self.n - 1)

    @cached_property
    def var_k1(self) -> float:
        """Sample variance of k1 over tokens."""
        return positive(self.variance("d", "d2"))

    @cached_property
    def var_k2(self) -> float:
        """Sample variance of k2 over tokens."""
        return positive(self.variance("d2", "d4", squares=0.25, scale=0.5))

    @cached_property
    def var_k3(self) -> float:
        """Sample variance of k3 over tokens."""
        return positive(self.variance("k3", "k3k3"))

    @cached_property
    def _cov_d_k3(self) -> float:
        return ratio(self["dk3"] - self["d"] * ratio(self["k3"], self.n), self.n - 1)

    @cached_property
    def var_ratio_minus_1(self) -> float:
        """Sample variance of r - 1 = e^d - 1 = d + k3."""
        return positive(self.var_k1 + self.var_k3 + 2 * self._cov_d_k3)

    @cached_property
    def cov_k1_ratio(self) -> float:
        """Sample covariance of k1 = -d with r - 1."""
        return -self.var_k1 - self._cov_d_k3

    @property
    def cv_lambda(self) -> float:
        """-Cov(k1, r - 1) / Var(r - 1), clamped to [0, 1]: 0 is k1, 1 is k3."""
        optimum = ratio(-self.cov_k1_ratio, self.var_ratio_minus_1)
        return optimum if math.isnan(optimum) else min(max(optimum, 0.0), 1.0)

    @property
    def cv_corr(self) -> float:
        """Correlation of k1 and r - 1."""
        return ratio(self.cov_k1_ratio, math.sqrt(self.var_k1 * self.var_ratio_minus_1))

    @property
    def ess(self) -> float:
        """(sum r)^2 / (N sum r^2), r = 1 + d + k3, unclamped, as a fraction of the tokens."""
        one = self.n + self["d"] + self["k3"]
        two = self.n + self["d2"] + self["k3k3"] + 2 * (self["d"] + self["k3"] + self["dk3"])
        return ratio(one * one, self.n * two)

    def weighted(self, column: str, sign: float = 1.0) -> float:
        """Self-normalised importance-weighted mean; nan where q drew the tokens itself."""
        return math.nan if self.on_policy else ratio(sign * self[column], self["w"])

    @property
    def weight_ess(self) -> float:
        """(sum w)^2 / (N sum w^2) of the importance weights; nan where q drew the tokens."""
        return math.nan if self.on_policy else ratio(self["w"] ** 2, self.n * self["ww"])

    # --- the histogram ---------------------------------------------------------------------
    def beyond(self, threshold: float) -> float:
        """Tokens with d >= threshold (or d <= threshold if it is negative); exact at edges."""
        index = edge_index(abs(threshold))
        below = float(self._cumulative[CENTRE + (index if threshold > 0 else -index) - 1])
        return float(self._cumulative[-1]) - below if threshold > 0 else below

    @property
    def positive_d(self) -> float:
        """Tokens with d > 0, i.e. k1 < 0."""
        not_negative = self._cumulative[-1] - self._cumulative[CENTRE - 1]
        return float(not_negative) - self["zero"]

    def quantile(self, probability: float) -> float:
        """D at rank ceil(probability x N), to 0.8 % of its value (numpy's ``inverted_cdf``)."""
        if not self.n:
            return math.nan
        rank = max(math.ceil(probability * self.n), 1)
        bucket = int(np.searchsorted(self._cumulative, rank - 0.5))
        return float(min(max(MIDDLES[bucket], -self.maxima[1]), self.maxima[0]))

    @property
    def smallest(self) -> float:
        """Smallest counted d, nan for none."""
        return -self.maxima[1] if self.n else math.nan

    @property
    def largest(self) -> float:
        """Largest counted d, nan for none."""
        return self.maxima[0] if self.n else math.nan

    # --- single sequences ------------------------------------------------------------------
    @property
    def top_sequence_share(self) -> float:
        """Largest share of sum_i (S1_i - mean T_i)^2 that one sequence holds."""
        mean = self.mean(K1)
        v = np.array([-mean, 1.0, 0.0, 0.0])
        whole = float(v @ gram(self.sums) @ v)
        if not self.top_sequences.size or not whole > 0:
            return math.nan
        residual = self.top_sequences[:, 1] - mean * self.top_sequences[:, 0]
        return min(float((residual**2).max()) / whole, 1.0)

    def policy_count(self, name: str) -> float:
        """Tokens of this kind under q plus those under p."""
        return float(sum(counts[POLICY_COUNTS.index(name)] for counts in self.policy_counts))

    @property
    def low_precision(self) -> float:
        """1 if >= 99 % of the log-probs of q or of p below -1/64 are bfloat16 or float16 values."""
        flagged = [self.low_precision_dtype(counts) != "" for counts in self.policy_counts]
        return float(any(flagged))

    @staticmethod
    def low_precision_dtype(counts: Array) -> str:
        """``"bf16"``, ``"fp16"`` or empty, from one policy's counts."""
        checked = counts[POLICY_COUNTS.index("checked")]
        for name in ("bf16", "fp16"):
            if checked > 0 and counts[POLICY_COUNTS.index(name)] >= 0.99 * checked:
                return name
        return ""


def total(sums: Array, column: str) -> float:
    """A sum by column name; a moment's name alone means core and tail together."""
    if column in COLUMN:
        return float(sums[COLUMN[column]])
    return float(sums[COLUMN[f"core/{column}"]] + sums[COLUMN[f"tail/{column}"]])


def per_sequence_totals(sums: Array) -> Array:
    """Totals of (T, k1, k2, k3) over all tokens."""
    return np.array(
        [total(sums, "n"), -total(sums, "d"), 0.5 * total(sums, "d2"), total(sums, "k3")]
    )


def gram(sums: Array) -> Array:
    """[4, 4] sums over sequences of products of (T, S1, S2, S3)."""
    matrix = np.zeros((4, 4))
    for name in GRAM:
        a, b = (PER_SEQUENCE.index(part) for part in name.split("."))
        matrix[a, b] = matrix[b, a] = sums[COLUMN[name]]
    return matrix


def clusters(sums: Array, prompts: Sequence[Array]) -> Clusters:
    """Clusters by prompt where every sequence has one and there are enough, else by sequence."""
    rows = prompt_rows(sums, prompts)
    if len(rows) >= MIN_PROMPTS:
        return Clusters(float(len(rows)), rows.T @ rows)
    return Clusters(float(sums[COLUMN["sequences"]]), gram(sums))


def prompt_rows(sums: Array, prompts: Sequence[Array]) -> Array:
    """[prompts, 4] sums by prompt; none unless every sequence came with its prompt."""
    sequences, prompted = sums[COLUMN["sequences"]], sums[COLUMN["prompted"]]
    if not prompts or not prompted > 0 or prompted != sequences:
        return np.zeros((0, len(PER_SEQUENCE)))
    rows = np.concatenate(prompts)
    return rows[rows[:, 0] > 0]


def group_values(totals: PairTotals, group: str) -> dict[str, float]:
    """k1 and k3 of one group with their standard errors; empty where it has no tokens."""
    sums = totals.groups[group]
    n = total(sums, "n")
    if not n:
        return {}
    found = clusters(sums, [totals.prompts[group]] if group in totals.prompts else [])
    values: dict[str, float] = {}
    for name, weights in (("k1", K1), ("k3", K3)):
        mean = float(np.dot(weights, per_sequence_totals(sums))) / n
        values[f"group/{group}/{name}/mean"] = mean
        values[f"group/{group}/{name}/se"] = found.standard_error(weights, mean, n)
    return values


def edge_index(magnitude: float) -> int:
    """Position of a bucket edge of |d|, counted from the tiny bucket.

    Raises:
        ValueError: `magnitude` is not an edge, so that a count beyond it would not be exact.
    """
    lowest = math.ldexp(1.0, LOW_EXPONENT)
    mantissa, exponent = math.frexp(magnitude)  # magnitude = mantissa * 2^exponent, in [.5, 1)
    step = (mantissa * 2 - 1) * (1 << MANTISSA_BITS)
    if magnitude < lowest or step != int(step):
        raise ValueError(
            f"threshold {magnitude} nats is no bucket edge: choose one with at most "
            f"{MANTISSA_BITS} fractional bits, such as 0.5, 1, 1.5, 2, 5 or 10"
        )
    return 1 + ((exponent - 1 - LOW_EXPONENT) << MANTISSA_BITS) + int(step)


def _edges() -> Array:
    """Lower edges of the buckets of |d|: the tiny one, the regular ones, the last."""
    octaves = np.ldexp(1.0, np.arange(LOW_EXPONENT, LOW_EXPONENT + (BUCKETS >> MANTISSA_BITS)))
    steps = 1 + np.arange(1 << MANTISSA_BITS) / (1 << MANTISSA_BITS)
    top = math.ldexp(1.0, LOW_EXPONENT + (BUCKETS >> MANTISSA_BITS))
    return np.concatenate([[0.0], np.outer(octaves, steps).ravel(), [top]])


EDGES = _edges()
_POSITIVE = np.concatenate([[0.0], (EDGES[1:-1] + EDGES[2:]) / 2, [math.inf]])
MIDDLES = np.concatenate([-_POSITIVE[::-1], _POSITIVE])
"""A representative d for every bucket; +-inf beyond the last, to be cut at the exact extremes."""


def coarse_histogram(histogram: Array, bits: int = 2) -> tuple[tuple[float, float], ...]:
    """The histogram with 2^bits buckets an octave, as (lower edge of |d| with sign, count).

    Only non-empty buckets, ascending. |d| < 2^-20 has edge 0.
    """
    width = 1 << (MANTISSA_BITS - bits)
    rows: list[tuple[float, float]] = []
    for sign, side in ((-1.0, histogram[CENTRE - 1 :: -1]), (1.0, histogram[CENTRE:])):
        counts = np.concatenate(
            [side[:1], side[1:-1].reshape(-1, width).sum(1), side[-1:]],
        )
        edges = np.concatenate([EDGES[:1], EDGES[1:-1:width], EDGES[-1:]])
        found = [(float(sign * e), float(c)) for e, c in zip(edges, counts, strict=True) if c]
        rows += found[::-1] if sign < 0 else found
    return tuple(rows)


def ratio(numerator: float, denominator: float) -> float:
    """Nan instead of a division by nothing."""
    if not denominator > 0:
        return math.nan
    return numerator / denominator


def positive(value: float) -> float:
    """A variance that rounding made negative is 0; nan stays nan."""
    return value if math.isnan(value) else max(value, 0.0)


def t_quantile(probability: float, df: float) -> float:
    """Quantile of Student's t, to 1e-3 for df >= 3 (Cornish-Fisher, Abramowitz-Stegun 26.7.5)."""
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


def from_arrays(parts: Mapping[str, Any]) -> PairTotals:
    """A `PairTotals` from plain arrays, with the sums added over groups."""
    groups: Mapping[str, Array] = parts["groups"]
    return PairTotals(sums=np.sum(list(groups.values()), axis=0), **parts)
