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

import numpy as np

from klmonitor.buckets import MIDDLES, Array, edge_index
from klmonitor.summary.layout import CENTRE, COLUMN, PER_SEQUENCE, POLICY_COUNTS

K1 = (0.0, 1.0, 0.0, 0.0)
K2 = (0.0, 0.0, 1.0, 0.0)
K3 = (0.0, 0.0, 0.0, 1.0)
GAP = (0.0, -1.0, 0.0, 1.0)
"""Weights on (T, S1, S2, S3): k3 - k1 = e^d - 1, whose expectation is 0 when x ~ q."""
K2_BIAS = (0.0, -1.0, 1.0, 0.0)
ROUNDING = 1e-12
"""A mean below this share of its absolute terms is what float64 sums leave of 0."""
PRODUCTS = np.array(
    [[COLUMN[".".join(sorted((a, b), key=PER_SEQUENCE.index))] for b in PER_SEQUENCE]
     for a in PER_SEQUENCE]
)  # fmt: skip
"""Columns of the products of (T, S1, S2, S3) by one another."""
MIN_PROMPTS = 2
"""The spread of one prompt cannot be told: the errors are by sequence then, for this prompt alone.
"""


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
        v = (weights[0] - mean, *weights[1:])
        squares = sum(
            x * y * product
            for x, products in zip(v, self._products, strict=True)
            if x
            for y, product in zip(v, products, strict=True)
            if y
        )
        return math.sqrt(self.count / (self.count - 1) * max(squares, 0.0)) / tokens

    @cached_property
    def _products(self) -> list[list[float]]:
        """`gram` as numbers: for a sum of sixteen, arrays cost more than they save."""
        products: list[list[float]] = self.gram.tolist()
        return products


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
        return clusters(self.sums, self._by_prompt)

    @cached_property
    def _by_prompt(self) -> Array:
        return prompt_rows(self.sums, list(self.prompts.values()))

    @property
    def n_prompts(self) -> float:
        """Distinct prompts (as told apart by their buckets); nan where some are not known."""
        return float(len(self._by_prompt)) or math.nan

    @property
    def on_policy(self) -> bool:
        """Whether q itself drew the tokens."""
        return self["on_policy"] == self.n

    # --- moments ---------------------------------------------------------------------------
    def mean(self, weights: Sequence[float]) -> float:
        """Token mean of a combination of (T, k1, k2, k3)."""
        (a, b, c, d), (t, s1, s2, s3) = weights, self._per_sequence
        return ratio(a * t + b * s1 + c * s2 + d * s3, self.n)

    def se(self, weights: Sequence[float]) -> float:
        """Cluster standard error of `mean`."""
        return self.clusters.standard_error(weights, self.mean(weights), self.n)

    def z(self, weights: Sequence[float]) -> float:
        """`mean` over its standard error, as a normal deviate; 0 where `mean` is rounding noise."""
        mean = self.mean(weights)
        if abs(mean) <= ROUNDING * self._magnitude(weights):
            return 0.0
        se = self.clusters.standard_error(weights, mean, self.n)
        return normal_deviate(ratio(mean, se), self.clusters.count - 1)

    def _magnitude(self, weights: Sequence[float]) -> float:
        """Mean of the absolute terms of `mean`, nats."""
        _, a, b, c = (abs(weight) for weight in weights)
        return ratio(a * self["abs"] + b * 0.5 * self["d2"] + c * self["k3"], self.n)

    @cached_property
    def gap_z(self) -> float:
        """`z` of the gap, mean k3 - mean k1."""
        return self.z(GAP)

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

    def below(self, log_ratio: float) -> float:
        """Tokens with d < `log_ratio`, any: to the 0.8 % of a bucket's middle."""
        buckets = int(np.searchsorted(MIDDLES, log_ratio))
        return float(self._cumulative[buckets - 1]) if buckets else 0.0

    @property
    def positive_d(self) -> float:
        """Tokens with d > 0, i.e. k1 < 0."""
        not_negative = self._cumulative[-1] - self._cumulative[CENTRE - 1]
        return float(not_negative) - self["zero"]

    def quantiles(self, probabilities: Sequence[float]) -> list[float]:
        """D at rank ceil(probability x N), to 0.8 % of its value (numpy's ``inverted_cdf``)."""
        if not self.n:
            return [math.nan] * len(probabilities)
        ranks = [max(math.ceil(probability * self.n), 1) - 0.5 for probability in probabilities]
        found: list[float] = MIDDLES[self._cumulative.searchsorted(ranks)].tolist()
        return [min(max(middle, -self.maxima[1]), self.maxima[0]) for middle in found]

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
        tt, ts, ss = (self[product] for product in ("t.t", "t.k1", "k1.k1"))
        whole = ss - 2 * mean * ts + mean * mean * tt
        if not self.top_sequences.size or not whole > 0:
            return math.nan
        largest = np.abs(self.top_sequences[:, 1] - mean * self.top_sequences[:, 0]).max()
        return min(float(largest) ** 2 / whole, 1.0)

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
    matrix: Array = sums[PRODUCTS]
    return matrix


def clusters(sums: Array, rows: Array) -> Clusters:
    """Clusters by prompt (`prompt_rows`) where there are enough, else by sequence."""
    if len(rows) >= MIN_PROMPTS:
        return Clusters(float(len(rows)), rows.T @ rows)
    return Clusters(float(sums[COLUMN["sequences"]]), gram(sums))


def prompt_rows(sums: Array, prompts: Sequence[Array]) -> Array:
    """[prompts, 4] sums by prompt; none unless every sequence came with its prompt."""
    sequences, prompted = sums[COLUMN["sequences"]], sums[COLUMN["prompted"]]
    if not prompts or not prompted > 0 or prompted != sequences:
        return np.zeros((0, len(PER_SEQUENCE)))
    rows = prompts[0] if len(prompts) == 1 else np.concatenate(prompts)
    return rows[np.flatnonzero(rows[:, 0])]


def group_values(totals: PairTotals, group: str) -> dict[str, float]:
    """k1 and k3 of one group with their standard errors; empty where it has no tokens."""
    sums = totals.groups[group]
    n = total(sums, "n")
    if not n:
        return {}
    prompts = [totals.prompts[group]] if group in totals.prompts else []
    found = clusters(sums, prompt_rows(sums, prompts))
    values: dict[str, float] = {}
    for name, weights in (("k1", K1), ("k3", K3)):
        mean = float(np.dot(weights, per_sequence_totals(sums))) / n
        values[f"group/{group}/{name}/mean"] = mean
        values[f"group/{group}/{name}/se"] = found.standard_error(weights, mean, n)
    return values


def ratio(numerator: float, denominator: float) -> float:
    """Nan instead of a division by nothing."""
    if not denominator > 0:
        return math.nan
    return numerator / denominator


def positive(value: float) -> float:
    """A variance that rounding made negative is 0; nan stays nan."""
    return value if math.isnan(value) else max(value, 0.0)


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
