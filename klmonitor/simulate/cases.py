"""What is simulated: contexts, and the ways in which p, or the sampler, differs from q."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Distributions:
    """Log-probs of some contexts, [contexts, V].

    Attributes:
        q: the policy whose KL is wanted.
        p: the one it is compared with.
        sampler: what draws the tokens; q itself unless a case is about another sampler.
    """

    q: Array
    p: Array
    sampler: Array


Change = Callable[[Generator, Array], Distributions]
"""From the contexts' logits [contexts, V] to their distributions."""


@dataclass(frozen=True)
class Case:
    """A mixture of ways in which p (or the sampler) differs from q.

    Attributes:
        name: short, as in tables.
        parts: (share of the contexts, change) pairs; the shares sum to 1.
    """

    name: str
    parts: tuple[tuple[float, Change], ...]


def zipf_logits(rng: Generator, contexts: int, vocabulary: int) -> Array:
    """[contexts, V]: -a log(rank) + N(0, .5), a = clip(exp(N(1.15, .75)), 1.05, 14) by context."""
    exponent = np.clip(np.exp(rng.normal(1.15, 0.75, contexts)), 1.05, 14.0)
    rank = np.arange(1, vocabulary + 1)
    noise = rng.normal(0.0, 0.5, (contexts, vocabulary))
    return np.asarray(noise - exponent[:, None] * np.log(rank))


def log_softmax(logits: Array) -> Array:
    """Log-probs along the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def drawn_by_q(q: Array, p: Array) -> Distributions:
    """From log-probs, the tokens being q's own."""
    return Distributions(q, p, q)


def noise(scale: float) -> Change:
    """Noise: p = softmax(l + N(0, scale))."""

    def change(rng: Generator, logits: Array) -> Distributions:
        moved = logits + rng.normal(0.0, scale, logits.shape)
        return drawn_by_q(log_softmax(logits), log_softmax(moved))

    return change


def uneven_noise(scale: float) -> Change:
    """Like `noise`, with the scale times exp(N(0, 1)) by context."""

    def change(rng: Generator, logits: Array) -> Distributions:
        scales = scale * np.exp(rng.normal(size=(len(logits), 1)))
        moved = logits + scales * rng.normal(size=logits.shape)
        return drawn_by_q(log_softmax(logits), log_softmax(moved))

    return change


def t4_noise(scale: float) -> Change:
    """Like `noise`, with Student's t of 4 degrees of freedom."""

    def change(rng: Generator, logits: Array) -> Distributions:
        moved = logits + scale * rng.standard_t(4, logits.shape)
        return drawn_by_q(log_softmax(logits), log_softmax(moved))

    return change


def temperature(t: float) -> Change:
    """Another temperature: p = softmax(l / t)."""

    def change(_rng: Generator, logits: Array) -> Distributions:
        return drawn_by_q(log_softmax(logits), log_softmax(logits / t))

    return change


def catastrophe(rng: Generator, logits: Array) -> Distributions:
    """Noise .1, but p has its probabilities at random other tokens."""
    near = noise(0.1)(rng, logits)
    return drawn_by_q(near.q, rng.permuted(near.p, axis=-1))


def collapse(_rng: Generator, logits: Array) -> Distributions:
    """All of q but 1e-6 lies on two tokens (1 - 1.1e-5 and 1e-5), where p has .45 and .5."""
    vocabulary = logits.shape[-1]
    q, p = (np.full_like(logits, rest / (vocabulary - 2)) for rest in (1e-6, 0.05))
    q[:, :2], p[:, :2] = (1 - 1.1e-5, 1e-5), (0.45, 0.5)
    return drawn_by_q(np.log(q), np.log(p))


def top_p(mass: float) -> Change:
    """Noise .1, sampled from q cut to its likeliest tokens of at least this mass."""

    def change(rng: Generator, logits: Array) -> Distributions:
        near = noise(0.1)(rng, logits)
        order = np.argsort(-near.q, axis=-1)
        ordered = np.take_along_axis(np.exp(near.q), order, -1)
        before = np.cumsum(ordered, axis=-1) - ordered
        kept = np.empty_like(before, dtype=bool)
        np.put_along_axis(kept, order, before < mass, -1)
        return Distributions(near.q, near.p, log_softmax(np.where(kept, near.q, -np.inf)))

    return change


def stale_sampler(scale: float) -> Change:
    """Noise .1, sampled from softmax(l + N(0, scale))."""

    def change(rng: Generator, logits: Array) -> Distributions:
        near = noise(0.1)(rng, logits)
        return Distributions(near.q, near.p, noise(scale)(rng, logits).p)

    return change


CASES: tuple[Case, ...] = (
    Case("noise .01", ((1.0, noise(0.01)),)),
    Case("noise .1", ((1.0, noise(0.1)),)),
    Case("noise .5", ((1.0, noise(0.5)),)),
    Case("noise 1.5", ((1.0, noise(1.5)),)),
    Case("temperature .8", ((1.0, temperature(0.8)),)),
    Case("temperature 2", ((1.0, temperature(2.0)),)),
    Case("catastrophes", ((0.996, noise(0.1)), (0.004, catastrophe))),
    Case("collapse", ((0.95, noise(0.1)), (0.05, collapse))),
    Case("top-p .95", ((1.0, top_p(0.95)),)),
    Case("stale sampler", ((1.0, stale_sampler(0.3)),)),
)
"""What happens in training runs, from a healthy step to a broken one."""

CLEAN_FAMILIES: Mapping[str, tuple[Case, ...]] = {
    "Gaussian noise": tuple(
        Case(f"noise {s:g}", ((1.0, noise(s)),)) for s in (0.01, 0.03, 0.1, 0.3, 1.0)
    ),
    "t4 noise": tuple(Case(f"t4 {s:g}", ((1.0, t4_noise(s)),)) for s in (0.01, 0.05, 0.2)),
    "temperature": tuple(
        Case(f"temperature {t:g}", ((1.0, temperature(t)),)) for t in (0.9, 0.97, 1.03, 1.1, 1.3)
    ),
    "uneven noise": tuple(
        Case(f"uneven {s:g}", ((1.0, uneven_noise(s)),)) for s in (0.01, 0.05, 0.2)
    ),
}
"""Steps with nothing wrong in them, lightest tails first; the last is the heaviest."""
