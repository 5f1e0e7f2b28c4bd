"""The signatures of causes on the host: sums of `summary.signatures` as means with their errors."""

from __future__ import annotations

import math

from klmonitor.numbers.clusters import Floats, positive, ratio
from klmonitor.summary.fields import (
    PROBABILITIES,
    RATIO_SUMS,
    SIGNATURE,
)

BINS = len(PROBABILITIES) + 1


class Signatures:
    """Of a pair at a step, or at some steps together.

    Args:
        sums: `fields.SIGNATURES`, added over batches, ranks, or steps.
    """

    def __init__(self, sums: Floats) -> None:
        self.sums = sums

    def sum(self, name: str) -> float:
        """One of `fields.SIGNATURES`."""
        return self.sums[SIGNATURE[name]]

    def mean(self, name: str) -> tuple[float, float]:
        """One of `SIGNATURE_RATIOS`, a ratio of sums over sequences, and its standard error.

        SE^2 = S/(S-1) sum_i (a_i - m b_i)^2 / (sum b)^2 over the S sequences (Cochran, Sampling
        Techniques, section 6.3); nan where nothing counted, or for fewer than two sequences.
        """
        first = SIGNATURE[f"{name}/a"]
        a, b, aa, ab, bb = self.sums[first : first + len(RATIO_SUMS)]
        if not b > 0:
            return math.nan, math.nan
        count, mean = self.sum("sequences"), a / b
        spread = count / (count - 1) if count >= 2 else math.nan
        square = positive(aa - 2 * mean * ab + mean * mean * bb)
        return mean, math.sqrt(spread * square) / b

    def share(self, name: str, of: str = "tokens") -> float:
        """A count as a share of another."""
        return ratio(self.sum(name), self.sum(of))

    def tilt(self) -> tuple[float, float]:
        """Twice cov(d, m) over var(d) within sequences, m = (log q + log p) / 2, and R^2.

        1 where one policy is the other plus noise that knows nothing of it; far from it where d
        grows with the log-prob, as at another temperature. R^2 is m's share of d's variance.
        """
        qq, pp, qp = (self.sum(name) for name in ("qq", "pp", "qp"))
        spread, product = qq + pp - 2 * qp, (qq + pp) * (qq + pp) - 4 * qp * qp
        return ratio(pp - qq, spread), ratio((pp - qq) * (pp - qq), product)

    @property
    def entropy(self) -> float:
        """Mean entropy of the trainer's policy, nats."""
        return ratio(self.sum("entropy"), self.sum("entropic"))
