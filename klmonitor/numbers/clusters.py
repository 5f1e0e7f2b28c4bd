"""Means over tokens with cluster standard errors, from the sums of one pair or group.

Works on plain numbers; what nothing was counted for is nan.
Notation (as in `docs/estimators.md`): x ~ q, d = log p - log q, e^d = p/q = 1 + d + k3; T_i and
S1_i, S2_i, S3_i are the tokens of cluster i and its sums of k1, k2, k3, B the number of clusters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import mul

import numpy as np
from numpy.typing import NDArray

from klmonitor.numbers.student import deviate_of_t
from klmonitor.summary.fields import COLUMN, GRAM, MOMENTS, PER_SEQUENCE
from klmonitor.summary.once import once

Array = NDArray[np.float64]
Floats = Sequence[float]

WEIGHTS = {
    "k1": (0.0, 1.0, 0.0, 0.0),
    "k2": (0.0, 0.0, 1.0, 0.0),
    "k3": (0.0, 0.0, 0.0, 1.0),
    "gap": (0.0, -1.0, 0.0, 1.0),  # k3 - k1 = e^d - 1, whose expectation is 0 when x ~ q
    "k2_bias": (0.0, -1.0, 1.0, 0.0),
}
"""What is averaged, as weights on (T, S1, S2, S3)."""
ROUNDING = 1e-12
"""A mean below this share of its absolute terms is what float64 sums leave of 0."""
MIN_PROMPTS = 2
"""The spread of one prompt cannot be told: the errors are by sequence then, for this prompt alone.
"""
MANY = 32
"""Prompts from which numpy multiplies them."""
_SEQUENCES, _PROMPTED = COLUMN["sequences"], COLUMN["prompted"]
_PRODUCTS = [[COLUMN[GRAM[GRAM.index(f"{min(a, b)[1]}.{max(a, b)[1]}")]]
              for b in enumerate(PER_SEQUENCE)] for a in enumerate(PER_SEQUENCE)]  # fmt: skip
_CORE, _TAIL = COLUMN["core/n"], COLUMN["tail/n"]
_SIZE = 1 + len(MOMENTS)


def ratio(numerator: float, denominator: float) -> float:
    """Nan instead of a division by nothing."""
    return numerator / denominator if denominator > 0 else math.nan


def positive(value: float) -> float:
    """A variance that rounding made negative is 0; nan stays nan."""
    return max(value, 0.0)


def token_sums(columns: Floats) -> list[float]:
    """N, and the sums of `fields.MOMENTS` in their order, over the core and beyond it.

    Args:
        columns: `fields.COLUMNS`.
    """
    core, tail = columns[_CORE : _CORE + _SIZE], columns[_TAIL : _TAIL + _SIZE]
    return [inside + beyond for inside, beyond in zip(core, tail, strict=True)]


class Clustered:
    """Ratios of sums over clusters, with their standard errors.

    Args:
        columns: sums by `fields.COLUMNS`.
        prompts: [prompts, 4] sums by prompt, of those with tokens.

    Attributes:
        totals: of (T, S1, S2, S3).
        prompts: prompts with tokens; 0 unless every sequence came with a prompt id.
        products: 4 x 4 sums over clusters of the products of (T, S1, S2, S3).
        count: B: prompts where there are at least `MIN_PROMPTS`, else sequences.
    """

    def __init__(self, columns: Floats, prompts: Array) -> None:
        n, d, _, d2, _, k3, *_ = token_sums(columns)
        self.totals = (n, -d, 0.5 * d2, k3)
        self._sequences = columns[_SEQUENCES]
        known = columns[_PROMPTED] == self._sequences > 0
        self.prompts = float(len(prompts)) if known else 0.0
        self.products = self._by_sequence = [[columns[i] for i in row] for row in _PRODUCTS]
        self.count = self._sequences
        if self.prompts >= MIN_PROMPTS:
            self.count, self.products = self.prompts, _products(prompts)

    @once
    def _means(self) -> dict[str, float]:
        n, k1, k2, k3 = self.totals
        sums = (k1, k2, k3, k3 - k1, k2 - k1)
        return {name: ratio(one, n) for name, one in zip(WEIGHTS, sums, strict=True)}

    def mean(self, name: str) -> float:
        """Token mean of one of `WEIGHTS`, nats."""
        return self._means[name]

    def se(self, name: str) -> float:
        """Its standard error, nats; nan for fewer than two clusters."""
        return self._error(WEIGHTS[name], self._means[name])

    def sequence_se(self, name: str) -> float:
        """The error by sequence, whatever is known of prompts.

        Right for a test of what holds for every prompt alone: that the gap is 0, or k1 not below 0.
        """
        by_sequence = (self._sequences, self._by_sequence)
        return self._error(WEIGHTS[name], self._means[name], *by_sequence)

    def combined_se(self, parts: Mapping[str, float]) -> float:
        """Standard error of a sum of estimators, nats.

        Args:
            parts: of `WEIGHTS` -> how much of it.
        """
        table = [[share * weight for weight in WEIGHTS[name]] for name, share in parts.items()]
        weights = [sum(column) for column in zip(*table, strict=True)]
        return self._error(weights, ratio(_dot(weights, self.totals), self.totals[0]))

    def z(self, name: str, mean: float, magnitude: float) -> float:
        """A mean over its error as a normal deviate; 0 where it is rounding noise.

        Args:
            name: of `WEIGHTS`, whose error it is.
            mean: nats.
            magnitude: mean of its absolute terms, nats.
        """
        if abs(mean) <= ROUNDING * magnitude < math.inf:
            return 0.0
        return deviate_of_t(ratio(mean, self.se(name)), self.count - 1)

    def _error(
        self,
        weights: Floats,
        mean: float,
        count: float | None = None,
        products: Sequence[Floats] | None = None,
    ) -> float:
        """Standard error of sum(weights . S) / sum(T), a ratio of sums over clusters.

        SE^2 = B/(B-1) sum_i (S_i - mean T_i)^2 / (sum T)^2 (linearised ratio estimator, Cochran,
        Sampling Techniques, section 6.3).

        Args:
            weights: on (T, S1, S2, S3).
            mean: the ratio.
            count: clusters; None: B.
            products: sums over them of the products of (T, S1, S2, S3); None: over the B.
        """
        count = self.count if count is None else count
        tokens = self.totals[0]
        if not (count >= 2 and tokens > 0):
            return math.nan
        rows = self.products if products is None else products
        off = enumerate((weights[0] - mean, *weights[1:]))
        terms = [(i, a) for i, a in off if a != 0]  # 0 of what overflowed
        square = sum([a * b * rows[i][j] for i, a in terms for j, b in terms if a * b != 0])
        return math.sqrt(count / (count - 1) * positive(square)) / tokens


def _dot(weights: Floats, totals: Floats) -> float:
    return sum([weight * total for weight, total in zip(weights, totals, strict=True) if weight])


def _products(rows: Array) -> list[list[float]]:
    """[4, 4] sums over rows of the products of their numbers."""
    if len(rows) > MANY:
        found: list[list[float]] = (rows.T @ rows).tolist()
        return found
    columns = list(zip(*rows.tolist(), strict=True))  # a matrix product takes longer to begin
    return [[sum(map(mul, a, b)) for b in columns] for a in columns]
