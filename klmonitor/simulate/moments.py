"""What k1, k2 and k3 do on a case: exact sums over the vocabulary, and closed forms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from klmonitor.simulate.cases import Array, Case, Distributions, zipf_logits

MOMENTS = ("k1", "k2", "k3", "k1k1", "k2k2", "k3k3", "rr", "k1r", "kl")
"""Means under the sampler of products of k1, k2, k3 and r - 1 (``r``); ``kl`` is under q."""


@dataclass(frozen=True)
class Truth:
    """What the estimators do on a case.

    Attributes:
        kl: KL(q || p), nats per token.
        mean: expectation of k1, k2, k3 over the sampler's tokens, nats.
        sd: their standard deviation over tokens, nats.
        gap: E[k3 - k1] = E[r] - 1; 0 if q is the sampler.
        lam: lambda* = -Cov(k1, r - 1) / Var(r - 1): k1 + lambda (r - 1) has the least variance.
        variance_ratio: variance of the estimator with lambda* over that of k3.
    """

    kl: float
    mean: Mapping[str, float]
    sd: Mapping[str, float]
    gap: float
    lam: float
    variance_ratio: float


def context_moments(given: Distributions) -> Array:
    """[len(MOMENTS)], averaged over the contexts; exact sums over the vocabulary.

    A token that the sampler excludes counts with probability 0.
    """
    d = given.p - given.q
    weight = np.exp(given.sampler)
    value = {"k1": -d, "k2": d * d / 2, "k3": np.expm1(d) - d, "r": np.expm1(d)}

    def mean(*names: str) -> float:
        product = weight * math.prod((value[name] for name in names[1:]), start=value[names[0]])
        return float(product.sum(-1).mean())

    return np.array(
        [
            *(mean(name) for name in ("k1", "k2", "k3")),
            *(mean(name, name) for name in ("k1", "k2", "k3", "r")),
            mean("k1", "r"),
            float((np.exp(given.q) * value["k3"]).sum(-1).mean()),
        ]
    )


def truth(case: Case, *, contexts: int, vocabulary: int, seed: int = 0, chunk: int = 16) -> Truth:
    """Exact sums over the vocabulary, averaged over random contexts.

    Each part of a mixture is averaged over `contexts` contexts of its own and then weighted, so
    that rare parts cost no precision.
    """
    moments = np.zeros(len(MOMENTS))
    for share, change in case.parts:
        rng = np.random.default_rng(seed)
        done = 0
        while done < contexts:
            size = min(chunk, contexts - done)
            given = change(rng, zipf_logits(rng, size, vocabulary))
            moments += share * size / contexts * context_moments(given)
            done += size
    return from_moments(dict(zip(MOMENTS, map(float, moments), strict=True)))


def from_moments(m: Mapping[str, float]) -> Truth:
    """Standard deviations, lambda* and its variance from the `MOMENTS`."""
    gap = m["k3"] - m["k1"]
    variance = {name: m[name + name] - m[name] ** 2 for name in ("k1", "k2", "k3")}
    variance_r, covariance = m["rr"] - gap**2, m["k1r"] - m["k1"] * gap
    lam = -covariance / variance_r if variance_r > 0 else math.nan
    best = variance["k1"] - covariance**2 / variance_r if variance_r > 0 else variance["k1"]
    return Truth(
        kl=m["kl"],
        mean={name: m[name] for name in variance},
        sd={name: math.sqrt(max(value, 0.0)) for name, value in variance.items()},
        gap=gap,
        lam=lam,
        variance_ratio=best / variance["k3"] if variance["k3"] > 0 else math.nan,
    )


def gaussian_truth(mu: float) -> Truth:
    """Closed forms for q = N(0, 1), p = N(mu, 1), where d ~ N(-mu^2/2, mu^2); mu > 0.

    The table in Schulman's "Approximating KL Divergence" (2020), in other units, with the rest of
    `Truth` for the same pair.
    """
    kl = mu**2 / 2
    variance_r = math.expm1(mu**2)
    variance_k3 = variance_r - mu**2
    return Truth(
        kl=kl,
        mean={"k1": kl, "k2": kl + mu**4 / 8, "k3": kl},
        sd={"k1": mu, "k2": kl * math.sqrt(2 + mu**2), "k3": math.sqrt(variance_k3)},
        gap=0.0,
        lam=mu**2 / variance_r,
        variance_ratio=(mu**2 - mu**4 / variance_r) / variance_k3,
    )
