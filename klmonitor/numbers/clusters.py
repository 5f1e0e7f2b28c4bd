"""Means over tokens with cluster standard errors, for any number of pairs or groups at once.

Works on the host copy of a summary's sums, as numpy arrays; what nothing was counted for is nan.
Notation (as in `docs/estimators.md`): x ~ q, d = log p - log q, e^d = p/q = 1 + d + k3; T_i and
S1_i, S2_i, S3_i are the tokens of cluster i and its sums of k1, k2, k3, B the number of clusters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from klmonitor.numbers.student import normal_deviate
from klmonitor.summary.fields import COLUMN, GRAM, MOMENTS, PER_SEQUENCE

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
TOKEN_SUMS = {name: i for i, name in enumerate(("n", *(moment.name for moment in MOMENTS)))}
"""Place of each sum over tokens among them: those of the core come first, then those beyond it."""
_CORE, _TAIL = COLUMN["core/n"], COLUMN["tail/n"]
_TOTALS = np.array([TOKEN_SUMS[name] for name in ("n", "d", "d2", "k3")])
_SCALES = np.array([1.0, -1.0, 0.5, 1.0])


class Quotient(NamedTuple):
    """A ratio that is still to be taken, nan where the denominator is not positive.

    The table of metrics divides all that it has at once: a step of a small model costs its calls.
    """

    numerator: Array
    denominator: Array | NDArray[np.bool_]


def divided(found: Sequence[Array | Quotient], pairs: int) -> Array:
    """[M, P] of M quotients, or values, [P] each; call it within ``np.errstate``."""
    one = np.ones(pairs)
    whole = [x if isinstance(x, Quotient) else Quotient(x, one) for x in found]
    return ratio(np.array([x.numerator for x in whole]), np.array([x.denominator for x in whole]))


def ratio(numerator: Array, denominator: Array) -> Array:
    """Nan instead of a division by nothing; call it within ``np.errstate``."""
    found: Array = np.where(denominator > 0, numerator / denominator, np.nan)
    return found


def positive(values: Array) -> Array:
    """Variances that rounding made negative are 0; nan stays nan."""
    found: Array = np.maximum(values, 0.0)
    return found


def token_sum(sums: Array, name: str) -> Array:
    """The sum of a `fields.MOMENTS` (or ``n``) over the tokens of the core and beyond it.

    Args:
        sums: [..., COLUMNS].
        name: as in `fields.MOMENTS`, or ``"n"``.
    """
    found: Array = sums[..., COLUMN[f"core/{name}"]] + sums[..., COLUMN[f"tail/{name}"]]
    return found


def token_sums(sums: Array) -> Array:
    """[..., `TOKEN_SUMS`] of [..., COLUMNS]: as `token_sum`, all at once."""
    size = len(TOKEN_SUMS)
    found: Array = sums[..., _CORE : _CORE + size] + sums[..., _TAIL : _TAIL + size]
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
        self.totals: Array = token_sums(sums)[..., _TOTALS] * _SCALES
        sequences, prompted = sums[..., COLUMN["sequences"]], sums[..., COLUMN["prompted"]]
        whole = (prompted > 0) & (prompted == sequences)
        self.prompts: Array = np.zeros_like(sequences)
        if np.count_nonzero(whole):
            self.prompts = whole * (prompts[..., 0] != 0).sum(axis=-1, dtype=np.float64)
        by_prompt = self.prompts >= MIN_PROMPTS
        self.count: Array = np.where(by_prompt, self.prompts, sequences)
        products = by_sequence = sums[..., _PRODUCTS]
        if np.count_nonzero(by_prompt):
            products = np.where(
                by_prompt[..., None, None], prompts.swapaxes(-1, -2) @ prompts, products
            )
        self.products: Array = products
        tokens = self.totals[..., :1]
        self._means = ratio(self.totals @ _WEIGHTS.T, tokens)
        both = np.array((self.count, sequences))[..., None]
        self._errors, self._by_sequence = _errors(
            _WEIGHTS, self._means, tokens, both, np.array((products, by_sequence))
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

    def combined_se(self, parts: Mapping[str, Array]) -> Array:
        """[...] standard error of a sum of estimators, nats.

        Args:
            parts: of `WEIGHTS` -> how much of it, [...].
        """
        terms = [np.multiply.outer(x, WEIGHTS[name]) for name, x in parts.items()]
        weights = np.sum(terms, axis=0)
        tokens, count = self.totals[..., :1], self.count[..., None]
        mean = ratio((self.totals * weights).sum(-1), self.totals[..., 0])[..., None]
        errors = _errors(weights[..., None, :], mean, tokens, count, self.products)
        found: Array = errors[..., 0]
        return found

    def z(self, names: Sequence[str], means: Array, magnitudes: Array) -> Array:
        """[..., n] means over their errors as normal deviates; 0 where a mean is rounding noise.

        Args:
            names: n of `WEIGHTS`.
            means: [..., n] of these, nats.
            magnitudes: [..., n] mean of the absolute terms of each mean, nats.
        """
        places = [_NAMES.index(name) for name in names]
        z = normal_deviate(ratio(means, self._errors[..., places]), self.count[..., None] - 1)
        found: Array = np.where(np.abs(means) <= ROUNDING * magnitudes, 0.0, z)
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
