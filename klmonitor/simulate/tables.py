"""The tables of `klmonitor simulate` and docs/estimators.md, as plain rows."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import NormalDist

from klmonitor.simulate.cases import CASES, Case
from klmonitor.simulate.moments import Truth, gaussian_truth, truth

TableRow = dict[str, str | float]
"""Column -> value; `row` lists the columns."""


def gaussian_rows(shifts: Iterable[float] = (0.1, 1.0, 3.0), tokens: int = 1024) -> list[TableRow]:
    """The closed forms for q = N(0, 1), p = N(mu, 1)."""
    return [row(f"Gaussian, mu {mu:g}", gaussian_truth(mu), tokens) for mu in shifts]


def vocabulary_rows(
    cases: Iterable[Case] = CASES,
    *,
    contexts: int = 256,
    vocabulary: int = 50_000,
    seed: int = 0,
    tokens: int = 1024,
) -> list[TableRow]:
    """The exact moments of the cases; seconds a case at the default size."""
    return [
        row(case.name, truth(case, contexts=contexts, vocabulary=vocabulary, seed=seed), tokens)
        for case in cases
    ]


def row(name: str, found: Truth, tokens: int) -> TableRow:
    """One line of a table.

    ``kl`` is KL(q || p) in nats; ``k1_mean``, ``k2_mean`` and ``k3_mean`` are expectations and
    ``k1_sd``, ``k2_sd``, ``k3_sd`` standard deviations over tokens, all six over the KL, so that 1
    is unbiased; ``gap`` = E[k3 - k1] over the KL is 0 if q is the sampler; ``lambda`` is the best
    control-variate weight and ``variance_ratio`` the variance it leaves over k3's;
    ``k1_negative`` is the probability that the mean of k1 over this many tokens is negative (by
    the normal distribution).
    """
    mean, sd = found.mean["k1"], found.sd["k1"]
    negative = NormalDist().cdf(-mean / sd * math.sqrt(tokens)) if sd > 0 else float(mean < 0)
    return {
        "case": name,
        "kl": found.kl,
        **{f"{k}_mean": value / found.kl for k, value in found.mean.items()},
        **{f"{k}_sd": value / found.kl for k, value in found.sd.items()},
        "gap": found.gap / found.kl,
        "lambda": found.lam,
        "variance_ratio": found.variance_ratio,
        "k1_negative": negative,
    }
