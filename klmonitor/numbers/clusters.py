"""Means over tokens with cluster standard errors, for any number of pairs or groups at once.

Works on the host copy of a summary's sums, as numpy arrays; what nothing was counted for is nan.
Notation (as in `docs/estimators.md`): x ~ q, d = log p - log q, e^d = p/q = 1 + d + k3; T_i and
S1_i, S2_i, S3_i are the tokens of cluster i and its sums of k1, k2, k3, B the number of clusters.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from klmonitor.numbers.student import normal_deviate
from klmonitor.summary.fields import COLUMN, GRAM, PER_SEQUENCE

Array = NDArray[np.float64]

WEIGHTS = {
    "k1": (0.0, 1.0, 0.0, 0.0),
    "k2": (0.0, 0.0, 1.0, 0.0),
    "k3": (0.0, 0.0, 0.0, 1.0),
    "gap": (0.0, -1.0, 0.0, 1.0),  # k3 - k1 = e^d - 1, whose expectation is 0 when x ~ q
    "k2_bias": (0.0, -1.0, 1.0, 0.0),
}
"""What is averaged, as weights on (T, S1, S2, S3)."""
_NAMES = tuple(WEIGHTS)
_WEIGHTS = np.array(list(WEIGHTS.values()))
ROUNDING = 1e-12
"""A mean below this share of its absolute terms is what float64 sums leave of 0."""
MIN_PROMPTS = 2
"""The spread of one prompt cannot be told: the errors are by sequence then, for this prompt alone.
"""
_ORDER = [[GRAM.index(f"{min(a, b)[1]}.{max(a, b)[1]}") for b in enumerate(PER_SEQUENCE)]
          for a in enumerate(PER_SEQUENCE)]  # fmt: skip
_PRODUCTS = COLUMN[GRAM[0]] + np.array(_ORDER)


def ratio(numerator: Array, denominator: Array) -> Array:
    """Nan instead of a division by nothing; call it within ``np.errstate``."""
    found: Array = np.where(denominator > 0, numerator / denominator, np.nan)
    return found


def positive(values: Array) -> Array:
    """Variances that rounding made negative are 0; nan stays nan."""
    found: Array = np.where(values < 0, 0.0, values)
    return found


def token_sum(sums: Array, name: str) -> Array:
    """The sum of a `fields.MOMENTS` (or ``n``) over the tokens of the core and beyond it.

    Args:
        sums: [..., COLUMNS].
        name: as in `fields.MOMENTS`, or ``"n"``.
    """
    found: Array = sums[..., COLUMN[f"core/{name}"]] + sums[..., COLUMN[f"tail/{name}"]]
    return found


class Clustered:
    """Ratios of sums over clusters, with their standard errors.

    Args:
        sums: [..., COLUMNS].
        prompts: [..., buckets, 4] sums by prompt.

    Attributes:
        totals: [..., 4] totals of (T, S1, S2, S3).
        prompts: [...] prompts with tokens; 0 unless every sequence came with a prompt id.
        products: [..., 4, 4] sums over clusters of the products of (T, S1, S2, S3).
        count: [...] B: prompts where there are at least `MIN_PROMPTS`, else sequences.
    """

    def __init__(self, sums: Array, prompts: Array) -> None:
        self.totals: Array = np.stack(
            (
                token_sum(sums, "n"),
                -token_sum(sums, "d"),
                0.5 * token_sum(sums, "d2"),
                token_sum(sums, "k3"),
            ),
            axis=-1,
        )
        sequences, prompted = sums[..., COLUMN["sequences"]], sums[..., COLUMN["prompted"]]
        whole = (prompted > 0) & (prompted == sequences)
        self.prompts: Array = np.where(whole, np.count_nonzero(prompts[..., 0], axis=-1), 0.0)
        by_prompt = self.prompts >= MIN_PROMPTS
        self.count: Array = np.where(by_prompt, self.prompts, sequences)
        products = by_sequence = sums[..., _PRODUCTS]
        if by_prompt.any():
            products = np.where(
                by_prompt[..., None, None], prompts.swapaxes(-1, -2) @ prompts, products
            )
        self.products: Array = products
        tokens = self.totals[..., :1]
        self._means = ratio(self.totals @ _WEIGHTS.T, tokens)
        self._products = products
        self._errors = _errors(_WEIGHTS, self._means, tokens, self.count[..., None], products)
        self._by_sequence = _errors(
            _WEIGHTS, self._means, tokens, sequences[..., None], by_sequence
        )

    def mean(self, name: str) -> Array:
        """[...] token mean of one of `WEIGHTS`, nats."""
        found: Array = self._means[..., _NAMES.index(name)]
        return found

    def se(self, name: str) -> Array:
        """[...] its standard error, nats; nan for fewer than two clusters."""
        found: Array = self._errors[..., _NAMES.index(name)]
        return found

    def sequence_se(self, name: str) -> Array:
        """[...] the error by sequence, whatever is known of prompts.

        Right for a test of what holds for every prompt alone: that the gap is 0, or k1 not below 0.
        """
        found: Array = self._by_sequence[..., _NAMES.index(name)]
        return found

    def combined(self, parts: Mapping[str, Array]) -> tuple[Array, Array]:
        """[...] mean of a sum of estimators and its standard error, nats.

        Args:
            parts: of `WEIGHTS` -> how much of it, [...].
        """
        terms = [np.multiply.outer(x, WEIGHTS[name]) for name, x in parts.items()]
        weights = np.sum(terms, axis=0)
        mean = ratio((self.totals * weights).sum(-1), self.totals[..., 0])[..., None]
        tokens, count = self.totals[..., :1], self.count[..., None]
        errors = _errors(weights[..., None, :], mean, tokens, count, self._products)
        return mean[..., 0], errors[..., 0]

    def z(self, name: str, magnitude: Array) -> Array:
        """[...] the mean over its error as a normal deviate; 0 where the mean is rounding noise.

        Args:
            name: one of `WEIGHTS`.
            magnitude: mean of the absolute terms of the mean, nats.
        """
        mean = self.mean(name)
        z = normal_deviate(ratio(mean, self.se(name)), self.count - 1)
        found: Array = np.where(np.abs(mean) <= ROUNDING * magnitude, 0.0, z)
        return found


def _errors(weights: Array, means: Array, tokens: Array, count: Array, products: Array) -> Array:
    """Standard errors of sum(weights . S) / sum(T), ratios of sums over clusters.

    SE^2 = B/(B-1) sum_i (S_i - mean T_i)^2 / (sum T)^2 (linearised ratio estimator, Cochran,
    Sampling Techniques, section 6.3).

    Args:
        weights: [W, 4] on (T, S1, S2, S3), or [..., W, 4].
        means: [..., W] the ratios.
        tokens: [..., 1] sum of T.
        count: [..., 1] B.
        products: [..., 4, 4] sums over clusters of the products of (T, S1, S2, S3).
    """
    weights = np.broadcast_to(weights, (*means.shape, 4)).copy()
    weights[..., 0] -= means
    outer = weights[..., :, None] * weights[..., None, :]
    terms = np.where(outer == 0, 0.0, outer * products[..., None, :, :])  # 0 of what overflowed
    squares = positive(terms.sum(axis=(-1, -2)))
    known = (count >= 2) & (tokens > 0)
    found: Array = np.where(known, np.sqrt(count / (count - 1) * squares) / tokens, np.nan)
    return found
