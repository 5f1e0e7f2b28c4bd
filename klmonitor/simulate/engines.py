"""Engines that sample otherwise than their trainer thinks: log-probs with a known cause.

A world is a pool of contexts with a vocabulary: Zipf logits l = -a log(rank) + N(0, .5) as in
`simulate.cases`, a reference l + N(0, .15), and prompts that draw from contexts of their own. Every
token of a step has one of its prompt's contexts; engine noise is N(0, s) on the logits, new at
every step. A fault changes what samples, what is scored, or what arrives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from klmonitor.simulate.cases import Array, log_softmax, zipf_logits

DRIFT = 0.15
"""Standard deviation of the reference's logits from the trainer's."""
OWN = 0.5
"""Share of the pool that a prompt draws from."""


@dataclass(frozen=True)
class World:
    """What stays from step to step.

    Attributes:
        logits: [contexts, V] of the trainer.
        reference: of the reference.
        noise: standard deviation of the engine's logits from those that it should have.
        prompts: [prompts, contexts of each], indices into the pool.
        completions: of each prompt a step.
        length: tokens of each.
    """

    logits: Array
    reference: Array
    noise: float
    prompts: NDArray[np.int64]
    completions: int
    length: int

    @cached_property
    def trainer(self) -> Array:
        """[contexts, V] the trainer's log-probs, nats."""
        return log_softmax(self.logits)

    @cached_property
    def referred(self) -> Array:
        """[contexts, V] the reference's."""
        return log_softmax(self.reference)

    @cached_property
    def entropy(self) -> Array:
        """[contexts] of the trainer's policy, nats."""
        found: Array = -(np.exp(self.trainer) * self.trainer).sum(-1)
        return found


@dataclass(frozen=True)
class Step:
    """What a monitor is given; [B, T] each.

    Attributes:
        rollout: log-probs by the engine, nats.
        old: by the trainer.
        ref: by the reference.
        entropy: of the trainer's policy, nats.
        prompt: [B] which prompt.
        version: [B] weight updates of what sampled; None: not told.
    """

    rollout: Array
    old: Array
    ref: Array
    entropy: Array
    prompt: NDArray[np.int64]
    version: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Engine:
    """What samples, and what is scored: [contexts, V] logits from those that it should have."""

    samples: Callable[[Generator, World, Array], Array]
    scores: Callable[[Generator, World, Array], Array]
    arrives: Callable[[Generator, Step], Step] = field(default=lambda rng, step: step)


def world(
    rng: Generator,
    *,
    vocabulary: int,
    prompts: int,
    tokens: int,
    noise: float,
    completions: int = 8,
    contexts: int = 192,
) -> World:
    """A world whose steps have about so many tokens."""
    logits = zipf_logits(rng, contexts, vocabulary)
    own = int(OWN * contexts)
    return World(
        logits,
        logits + rng.normal(0, DRIFT, logits.shape),
        noise,
        np.array([rng.choice(contexts, own, replace=False) for _ in range(prompts)]),
        completions,
        max(tokens // (prompts * completions), 4),
    )


def step(rng: Generator, at: World, engine: Engine) -> Step:
    """One step's tokens."""
    prompt = np.repeat(np.arange(len(at.prompts)), at.completions)
    place = rng.integers(at.prompts.shape[1], size=(len(prompt), at.length))
    context = np.take_along_axis(at.prompts[prompt], place, axis=1)
    served = at.logits
    if at.noise:
        served = served + rng.normal(0, at.noise, served.shape)
    sampled = engine.samples(rng, at, served)
    drawn_from = log_softmax(sampled)
    token = _drawn(rng, drawn_from, context)
    scored = drawn_from
    if engine.scores is not engine.samples:
        scored = log_softmax(engine.scores(rng, at, served))
    found = Step(
        rollout=scored[context, token],
        old=at.trainer[context, token],
        ref=at.referred[context, token],
        entropy=at.entropy[context],
        prompt=prompt,
    )
    return engine.arrives(rng, found)


def _drawn(rng: Generator, log_probs: Array, context: NDArray[np.int64]) -> NDArray[np.int64]:
    """A token for each context, by inversion of the distribution functions."""
    flat, upto = context.ravel(), np.cumsum(np.exp(log_probs), axis=-1)
    order = np.argsort(flat, kind="stable")
    found = np.empty(flat.size, dtype=np.int64)
    edges = np.flatnonzero(np.diff(flat[order], prepend=-1, append=-1))
    for start, end in pairwise(edges):
        row = upto[flat[order[start]]]
        uniform = rng.random(end - start) * row[-1]
        found[order[start:end]] = np.searchsorted(row, uniform, side="right")
    return np.asarray(np.minimum(found, log_probs.shape[-1] - 1)).reshape(context.shape)


# --- engines -----------------------------------------------------------------------------------
def _as_served(_rng: Generator, _at: World, served: Array) -> Array:
    return served


def clean() -> Engine:
    """Nothing but the engine's noise."""
    return Engine(_as_served, _as_served)


def serves_reference() -> Engine:
    """Weights never arrive, or the adapter is off."""

    def reference(rng: Generator, at: World, served: Array) -> Array:
        return at.reference + (served - at.logits)

    return Engine(reference, reference)


def temperature(t: float, *, raw: bool) -> Engine:
    """Sampled at another temperature; scored at it, or (raw) at 1."""

    def tempered(_rng: Generator, _at: World, served: Array) -> Array:
        return served / t

    return Engine(tempered, _as_served if raw else tempered)


def cut(mass: float, *, raw: bool) -> Engine:
    """Sampled from the likeliest tokens of at least this mass; scored renormalised, or raw."""

    def kept(_rng: Generator, _at: World, served: Array) -> Array:
        order = np.argsort(-served, axis=-1)
        ordered = np.take_along_axis(np.exp(log_softmax(served)), order, -1)
        before = np.cumsum(ordered, axis=-1) - ordered
        inside = np.empty_like(before, dtype=bool)
        np.put_along_axis(inside, order, before < mass, -1)
        return np.where(inside, served, -np.inf)

    return Engine(kept, _as_served if raw else kept)


def stale(drift: float, *, versions: int = 0) -> Engine:
    """Weights of some updates ago: each moves the logits by N(0, drift) in an old direction.

    With `versions`, half of the sequences are that many updates old and the others are not.
    """

    def moved(rng: Generator, at: World, served: Array) -> Array:
        direction = np.random.default_rng(len(at.logits)).normal(0, drift, served.shape)
        return served + direction

    if not versions:
        return Engine(moved, moved)

    def told(rng: Generator, found: Step) -> Step:
        fresh = rng.random(len(found.prompt)) < 0.5
        near = found.old + rng.normal(0, 1e-3, found.old.shape)
        rollout = np.where(fresh[:, None], near, found.rollout)
        return replace(found, rollout=rollout, version=np.where(fresh, versions, 0))

    return Engine(moved, moved, told)


def shifted(by: int) -> Engine:
    """The engine's log-probs are one position off."""
    return replace(clean(), arrives=lambda rng, s: replace(s, rollout=np.roll(s.rollout, by, 1)))


def end_off(last: bool, size: float = 2.0) -> Engine:
    """The first or the last token of every sequence is scored in another context."""

    def arrives(rng: Generator, found: Step) -> Step:
        rollout, column = found.rollout.copy(), -1 if last else 0
        rollout[:, column] -= np.abs(rng.normal(0, size, len(rollout)))
        return replace(found, rollout=rollout)

    return replace(clean(), arrives=arrives)


def placeholder(tokens: int = 3) -> Engine:
    """The last tokens of every sequence have no score: 0."""

    def arrives(_rng: Generator, found: Step) -> Step:
        rollout = found.rollout.copy()
        rollout[:, -tokens:] = 0.0
        return replace(found, rollout=rollout)

    return replace(clean(), arrives=arrives)


def other_sequences(share: float = 0.03) -> Engine:
    """The trainer scores some whole sequences after another prompt: its log-probs fall."""

    def arrives(rng: Generator, found: Step) -> Step:
        old, n = found.old.copy(), max(1, math.floor(share * len(found.prompt)))
        old[:n] -= rng.exponential(1.0, (n, old.shape[1]))
        return replace(found, old=old)

    return replace(clean(), arrives=arrives)


def ids_replaced(share: float = 0.03) -> Engine:
    """The trainer scores another token here and there: one that it finds hardly possible."""

    def arrives(rng: Generator, found: Step) -> Step:
        old = found.old.copy()
        other = rng.random(old.shape) < share
        old[other] -= 5 + rng.exponential(3.0, int(other.sum()))
        return replace(found, old=old)

    return replace(clean(), arrives=arrives)


def rows_moved() -> Engine:
    """The engine's log-probs come in another order of the sequences."""
    return replace(clean(), arrives=lambda rng, s: replace(s, rollout=np.roll(s.rollout, 1, 0)))


ENGINES: Mapping[str, tuple[str, Engine]] = {
    "clean": ("", clean()),
    "the reference": ("reference", serves_reference()),
    **{
        f"T {t}, scored {'raw' if raw else 'so'}": (
            ("narrower" if t < 1 else "wider") if raw else "temperature",
            temperature(t, raw=raw),
        )
        for t in (0.7, 0.9, 1.1, 1.3)
        for raw in (False, True)
    },
    **{
        f"top-p {mass}, scored {'raw' if raw else 'so'}": (
            "narrower" if raw else "cut",
            cut(mass, raw=raw),
        )
        for mass in (0.8, 0.9, 0.95)
        for raw in (False, True)
    },
    "shifted by 1": ("shift", shifted(1)),
    "shifted by -1": ("shift", shifted(-1)),
    "first token": ("first token", end_off(last=False)),
    "last token": ("last token", end_off(last=True)),
    "placeholder": ("placeholder", placeholder()),
    "other sequences": ("sequences", other_sequences()),
    "stale, versions told": ("stale", stale(0.3, versions=3)),
    "stale, not told": ("coarse or stale", stale(0.3)),
    "staler, not told": ("coarse or stale", stale(0.7)),
    "ids replaced": ("other tokens", ids_replaced()),
    "rows of others": ("other tokens", rows_moved()),
}
"""Name -> the cause that is right, and the engine."""
