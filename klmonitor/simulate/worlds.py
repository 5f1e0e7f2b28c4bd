"""Cases of a wanted KL, as a finite pool of contexts whose every moment is a sum.

What is drawn from a `Pool` and what is summed over it are the same distribution, so that a
simulation has an exact answer to be compared with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from klmonitor.simulate.cases import (
    Array,
    Change,
    Distributions,
    collapse,
    noise,
    stale_sampler,
    temperature,
    top_p,
    zipf_logits,
)

CONTEXTS, VOCABULARY = 96, 2000
TRIES = 60
COLLAPSED_SHARE = 0.9
"""Of the KL, in the case of a collapse; the rest is ordinary noise."""


@dataclass(frozen=True)
class Pool:
    """Tokens with their log-ratio and their probability of being drawn.

    Attributes:
        name: of the case.
        kl: KL(q || p), nats per token.
        d: log p - log q of every token of the pool, [M], nats.
        weight: [M], the probability that a draw is this token; they sum to 1.
    """

    name: str
    kl: float
    d: Array
    weight: Array

    def mean(self, value: Array) -> float:
        """The expectation of a function of d over draws."""
        return float(self.weight @ value)

    def draw(self, rng: Generator, batches: int, tokens: int) -> Array:
        """D of independent tokens, [batches, tokens]."""
        upto = np.cumsum(self.weight)
        uniform = rng.random((batches, tokens)) * upto[-1]
        index: NDArray[np.int64] = np.searchsorted(upto, uniform, side="right")
        return np.asarray(self.d[np.minimum(index, len(self.d) - 1)])


def gaussian(kl: float) -> Pool:
    """Of N(0, 1) and N(mu, 1), KL = mu^2 / 2: d on a grid of x.

    It reaches 9 standard deviations beyond where q, p and the second moment of p/q are.
    """
    mu = math.sqrt(2 * kl)
    x = np.linspace(-9, 9 + 2 * mu, 200_001)
    weight = np.exp(-(x**2) / 2)
    return Pool("gaussian", kl, mu * x - mu**2 / 2, weight / weight.sum())


def _pool(name: str, parts: Mapping[Change, float], seed: int) -> Pool:
    """A mixture of changes, each over the same contexts."""
    logits = zipf_logits(np.random.default_rng(seed), CONTEXTS, VOCABULARY)
    d, weight, kl = [], [], 0.0
    for change, share in parts.items():
        given: Distributions = change(np.random.default_rng(seed + 1), logits)
        ratio = given.p - given.q
        kl += share * float((np.exp(given.q) * -ratio).sum(-1).mean())
        drawn = np.exp(given.sampler) * (share / CONTEXTS)
        d.append(ratio[drawn > 0])
        weight.append(drawn[drawn > 0])
    weights = np.concatenate(weight)
    return Pool(name, kl, np.concatenate(d), weights / weights.sum())


def _fitted(name: str, make: Callable[[float], Pool], kl: float, low: float, high: float) -> Pool:
    """The pool whose size, between two limits, gives the wanted KL (a monotone function of it).

    Raises:
        ValueError: the case cannot have that KL.
    """
    most = make(high).kl
    if not 0 < kl <= most:
        raise ValueError(f"{name} with a KL of {kl:g} cannot be had: the most is {most:.3g} nats")
    size, slope, before = math.sqrt(low * high), 2.0, (high, most)  # KL is about size squared
    for _ in range(TRIES):
        found = make(size)
        if abs(found.kl - kl) < 1e-9 * kl:
            break
        low, high = (size, high) if found.kl < kl else (low, size)
        if found.kl != before[1]:
            slope = math.log(found.kl / before[1]) / math.log(size / before[0])
        before = size, found.kl
        guess = size * (kl / found.kl) ** (1 / slope) if slope > 0 else 0.0
        size = guess if low < guess < high else math.sqrt(low * high)
    return found


def _zipf(kl: float, seed: int) -> Pool:
    return _fitted("zipf", lambda s: _pool("zipf", {noise(s): 1.0}, seed), kl, 1e-4, 8.0)


def _heavy_p(kl: float, seed: int) -> Pool:
    def make(heat: float) -> Pool:
        return _pool("heavy-p", {temperature(1 + heat): 1.0}, seed)

    return _fitted("heavy-p", make, kl, 1e-4, 60.0)


def _temperature(kl: float, seed: int) -> Pool:
    def make(cold: float) -> Pool:
        return _pool("temperature", {temperature(1 / (1 + cold)): 1.0}, seed)

    return _fitted("temperature", make, kl, 1e-4, 60.0)


def _collapse(kl: float, seed: int) -> Pool:
    whole = _pool("collapse", {collapse: 1.0}, seed).kl
    share = COLLAPSED_SHARE * kl / whole
    if not 0 < share <= 0.5:
        raise ValueError(
            f"collapse with a KL of {kl:g} cannot be had: the most is {0.55 * whole:.2g} nats"
        )

    def make(s: float) -> Pool:
        return _pool("collapse", {collapse: share, noise(s): 1 - share}, seed)

    return _fitted("collapse", make, kl, 1e-4, 8.0)


def _top_p(kl: float, seed: int) -> Pool:
    """The KL of noise; the tokens come from q cut at .95 of its mass."""
    return _renoised("top-p", kl, seed, lambda _: top_p(0.95))


def _stale(kl: float, seed: int) -> Pool:
    """The KL of noise; the tokens come from weights that are .3 away from q's logits."""
    return _renoised("stale", kl, seed, lambda _: stale_sampler(0.3))


def _renoised(name: str, kl: float, seed: int, sampler: Callable[[float], Change]) -> Pool:
    """P is q with noise of the wanted KL, whatever samples."""

    def make(scale: float) -> Pool:
        def change(rng: Generator, logits: Array) -> Distributions:
            near = noise(scale)(rng, logits)
            other = sampler(scale)(np.random.default_rng(seed + 2), logits)
            return Distributions(near.q, near.p, other.sampler)

        return _pool(name, {change: 1.0}, seed)

    return _fitted(name, make, kl, 1e-4, 8.0)


WORLDS: Mapping[str, Callable[[float, int], Pool]] = {
    "gaussian": lambda kl, _seed: gaussian(kl),
    "zipf": _zipf,
    "heavy-p": _heavy_p,
    "collapse": _collapse,
    "top-p": _top_p,
    "stale": _stale,
    "temperature": _temperature,
}
"""Name -> the pool of a KL and a seed."""
EXPLAINED = {
    "gaussian": "q = N(0, 1), p = N(mu, 1)",
    "zipf": "a language model's contexts; p is q with noise on its logits",
    "heavy-p": "p is wider than q: the same logits at a higher temperature",
    "collapse": "a few contexts where q is certain of a token that p gives half its mass",
    "top-p": "noise, but the tokens come from q cut at .95 of its mass: not from q",
    "stale": "noise, but the tokens come from older weights: not from q",
    "temperature": "p is narrower than q: the same logits at a lower temperature",
}


def make_pool(case: str, kl: float, seed: int = 0) -> Pool:
    """The pool of a case.

    Raises:
        ValueError: there is no such case, or it cannot have that KL.
    """
    if case not in WORLDS:
        raise ValueError(f"unknown case {case!r}: choose from {', '.join(WORLDS)}")
    if not (math.isfinite(kl) and 0 < kl <= 8):
        raise ValueError(f"a KL of {kl:g} nats: give one above 0, 8 at most")
    return WORLDS[case](kl, seed)
