"""What k1, k2, k3 and the control variate do on a case: exactly, and in simulated batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from klmonitor.simulate.cases import Array
from klmonitor.simulate.worlds import Pool

LAMBDAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
CONFIDENCE_Z = 1.959964
"""Of a 95 % interval: batches are of hundreds of independent tokens."""
AT_ONCE = 2**20
"""Tokens that are held together."""


@dataclass(frozen=True)
class Outcome:
    """One estimator at one batch size.

    Attributes:
        estimator: ``"k1"``, ``"k2"``, ``"k3"`` or ``"cv 0.25"``, the mixture at a lambda.
        tokens: of a batch.
        expected: its exact expectation, nats per token.
        bias: that less the KL, nats.
        sd: its exact standard deviation over tokens, nats.
        mean: over the simulated batches, nats.
        mean_error: one exact standard error of `mean`.
        sd_of_mean: standard deviation of the batches' means, nats; exactly sd / sqrt(tokens).
        negative: share of the batches whose mean is below 0.
        coverage: share of the batches whose 95 % interval holds the KL.
        median: of the batches' means: what one sees, where tails are heavy, nats.
        top_share: mean share of the largest token in the sum of sizes.
    """

    estimator: str
    tokens: int
    expected: float
    bias: float
    sd: float
    mean: float
    mean_error: float
    sd_of_mean: float
    negative: float
    coverage: float
    median: float
    top_share: float


@dataclass(frozen=True)
class Study:
    """A case.

    Attributes:
        case: its name.
        kl: KL(q || p), nats per token.
        best_lambda: the weight of r - 1 with the least variance.
        batches: how many were simulated of each size.
        outcomes: of every estimator at every batch size.
    """

    case: str
    kl: float
    best_lambda: float
    batches: int
    outcomes: tuple[Outcome, ...]

    def rows(self) -> list[dict[str, object]]:
        """The outcomes as plain objects."""
        return [asdict(outcome) for outcome in self.outcomes]


Estimator = Callable[[Array], Array]
"""From d to an estimate a token."""
ESTIMATORS: Mapping[str, Estimator] = {
    "k1": lambda d: -d,
    "k2": lambda d: d * d / 2,
    "k3": lambda d: np.asarray(np.expm1(d) - d),
}


def mixture(weight: float) -> Estimator:
    """The control variate -d + lambda (r - 1)."""
    return lambda d: np.asarray(weight * np.expm1(d) - d)


def moments(pool: Pool, estimator: Estimator) -> tuple[float, float]:
    """Exact expectation and standard deviation over tokens."""
    value = estimator(pool.d)
    mean = pool.mean(value)
    return mean, math.sqrt(pool.mean((value - mean) ** 2))


def best_lambda(pool: Pool) -> float:
    """lambda* = -Cov(k1, r - 1) / Var(r - 1)."""
    k1, r = -pool.d, np.expm1(pool.d)
    centred = r - pool.mean(r)
    variance = pool.mean(centred**2)
    return -pool.mean((k1 - pool.mean(k1)) * centred) / variance if variance > 0 else math.nan


def study(
    pool: Pool,
    sizes: Sequence[int] = (256, 4096),
    *,
    lambdas: Sequence[float] = LAMBDAS,
    batches: int = 400,
    seed: int = 0,
) -> Study:
    """Simulate a case.

    Args:
        pool: of the case.
        sizes: tokens of a batch.
        lambdas: weights of r - 1 in the control variate.
        batches: how many of each size.
        seed: of the draws.
    """
    every = {**ESTIMATORS, **{f"cv {weight:g}": mixture(weight) for weight in lambdas}}
    exact = {name: moments(pool, estimator) for name, estimator in every.items()}
    rng = np.random.default_rng(seed)
    found = []
    for tokens in sizes:
        drawn = _simulated(pool, rng, every, tokens, batches)
        found += [_outcome(pool, name, tokens, exact[name], *drawn[name]) for name in every]
    return Study(pool.name, pool.kl, best_lambda(pool), batches, tuple(found))


def _simulated(
    pool: Pool,
    rng: np.random.Generator,
    every: Mapping[str, Estimator],
    tokens: int,
    batches: int,
) -> dict[str, tuple[Array, Array, Array]]:
    """By estimator: the batches' means, their standard errors, and shares of the largest token."""
    parts: dict[str, list[tuple[Array, Array, Array]]] = {name: [] for name in every}
    left = batches
    while left:
        count = min(left, max(1, AT_ONCE // tokens))
        d = pool.draw(rng, count, tokens)
        for name, estimator in every.items():
            value = estimator(d)
            size = np.abs(value)
            total = size.sum(-1)
            share = np.divide(size.max(-1), total, out=np.zeros(count), where=total > 0)
            error = value.std(-1, ddof=1) / math.sqrt(tokens)
            parts[name].append((value.mean(-1), error, share))
        left -= count
    return {
        name: tuple(np.concatenate(column) for column in zip(*some, strict=True))  # type: ignore[misc]
        for name, some in parts.items()
    }


def _outcome(
    pool: Pool,
    name: str,
    tokens: int,
    exact: tuple[float, float],
    means: Array,
    errors: Array,
    shares: Array,
) -> Outcome:
    expected, sd = exact
    return Outcome(
        estimator=name,
        tokens=tokens,
        expected=expected,
        bias=expected - pool.kl,
        sd=sd,
        mean=float(means.mean()),
        mean_error=sd / math.sqrt(tokens * len(means)),
        sd_of_mean=float(means.std(ddof=1)),
        negative=float((means < 0).mean()),
        coverage=float((np.abs(means - pool.kl) <= CONFIDENCE_Z * errors).mean()),
        median=float(np.median(means)),
        top_share=float(shares.mean()),
    )
