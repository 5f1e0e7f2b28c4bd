"""The signatures of causes on the host: sums of `summary.signatures` as means with their errors."""

from __future__ import annotations

import numpy as np

from klmonitor.numbers.clusters import Array, positive, ratio
from klmonitor.summary.fields import PROBABILITIES, RATIO_SUMS, SIGNATURE, SIGNATURE_SUMS

BINS = len(PROBABILITIES) + 1


class Signatures:
    """Of the pairs of a step, or of some steps together.

    Args:
        sums: [P, SIGNATURES], added over batches, ranks, or steps.
    """

    def __init__(self, sums: Array) -> None:
        self.sums = sums

    def sum(self, name: str) -> Array:
        """[P] one of `fields.SIGNATURES`."""
        found: Array = self.sums[:, SIGNATURE[name]]
        return found

    def means(self) -> tuple[Array, Array]:
        """[P, SIGNATURE_RATIOS] ratios of sums over sequences, and their standard errors.

        SE^2 = S/(S-1) sum_i (a_i - m b_i)^2 / (sum b)^2 over the S sequences (Cochran, Sampling
        Techniques, section 6.3); nan where nothing counted, or for fewer than two sequences.
        """
        sums = self.sums[:, len(SIGNATURE_SUMS) :].reshape(len(self.sums), -1, len(RATIO_SUMS))
        a, b, aa, ab, bb = np.moveaxis(sums, -1, 0)
        value, count = ratio(a, b), self.sum("sequences")[:, None]
        squares = positive(aa - 2 * value * ab + value * value * bb)
        se = np.where(count >= 2, np.sqrt(count / (count - 1) * squares), np.nan) / b
        return value, np.where(b > 0, se, np.nan)

    def share(self, name: str, of: str = "tokens") -> Array:
        """[P] a count as a share of another."""
        return ratio(self.sum(name), self.sum(of))

    @property
    def entropy(self) -> Array:
        """[P] mean entropy of the trainer's policy, nats."""
        return ratio(self.sum("entropy"), self.sum("entropic"))
