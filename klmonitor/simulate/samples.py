"""Tokens with a known KL: from a case's contexts, and clustered as in training."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from klmonitor.simulate.cases import Array, Case, zipf_logits


@dataclass(frozen=True)
class Tokens:
    """Log-probs of sampled tokens, [sequences, tokens], nats.

    Attributes:
        q: under q.
        p: under p.
        kl: [sequences] the exact KL(q || p) of each sequence's context, nats; empty: it has many.
    """

    q: Array
    p: Array
    kl: Array = field(default_factory=lambda: np.empty(0))

    @property
    def d(self) -> Array:
        """The log-ratio, log p - log q."""
        return self.p - self.q


def sample(
    rng: Generator,
    case: Case,
    *,
    sequences: int,
    tokens: int,
    vocabulary: int,
    chunk: int = 64,
    exact: bool = False,
) -> Tokens:
    """Tokens of a case: every sequence is one context, from which its tokens are drawn.

    Sequences are therefore as different as contexts are; shuffle the tokens over the whole array
    for independent ones. With `exact` the sequences' exact KL is summed too.
    """
    shares = [share for share, _ in case.parts]
    part = np.sort(rng.choice(len(shares), sequences, p=shares))
    pieces: list[Array] = []
    kl: list[Array] = [np.empty(0)]
    for i, (_, change) in enumerate(case.parts):
        left = int((part == i).sum())
        while left:
            size = min(chunk, left)
            given = change(rng, zipf_logits(rng, size, vocabulary))
            drawn = draw(rng, given.sampler, tokens)
            pieces.append(np.stack([np.take_along_axis(x, drawn, -1) for x in (given.q, given.p)]))
            if exact:
                d = given.p - given.q
                kl.append((np.exp(given.q) * (np.expm1(d) - d)).sum(-1))
            left -= size
    order = rng.permutation(sequences)
    together = np.concatenate(pieces, axis=1)[:, order]
    return Tokens(q=together[0], p=together[1], kl=np.concatenate(kl)[order[: exact * sequences]])


def draw(rng: Generator, log_probs: Array, tokens: int) -> NDArray[np.int64]:
    """Token ids [contexts, tokens] by inversion of the distribution functions."""
    cumulative = np.cumsum(np.exp(log_probs), axis=-1)
    uniform = rng.random((len(log_probs), tokens)) * cumulative[:, -1:]
    rows = [np.searchsorted(c, u, side="right") for c, u in zip(cumulative, uniform, strict=True)]
    return np.asarray(np.minimum(np.stack(rows), log_probs.shape[-1] - 1), dtype=np.int64)


LOG_Q = -20.0
"""Nats: log q of every clustered token; only d matters."""


@dataclass(frozen=True)
class ClusteredTokens:
    """Tokens of sequences of different KL, several to a prompt.

    Attributes:
        tokens: log-probs, [sequences, tokens].
        mask: bool [sequences, tokens], True within a sequence's length.
        prompts: int64 [sequences], which prompt a sequence answers.
        kl: the expectation of k1 and of k3 over tokens, nats; what an interval should cover.
    """

    tokens: Tokens
    mask: NDArray[np.bool_]
    prompts: NDArray[np.int64]
    kl: float


@dataclass(frozen=True)
class Clustering:
    """How sequences differ.

    A token's d is that of the Gaussian case, N(-mu^2/2, mu^2), so that E[k1] = E[k3] = mu^2/2. The
    sequence's KL is ``kl`` times a Gamma factor of its prompt times one of its own, both of mean 1.
    Lengths are uniform and independent of the KL.

    Attributes:
        prompts: how many.
        completions: sequences a prompt.
        lengths: shortest and longest sequence, tokens.
        kl: nats per token.
        heterogeneity: variance of a sequence's KL over its squared mean.
        icc: intra-class correlation of the sequences' mean k1 within a prompt.
    """

    prompts: int
    completions: int = 1
    lengths: tuple[int, int] = (60, 240)
    kl: float = 0.02
    heterogeneity: float = 0.8
    icc: float = 0.0

    def factor_variances(self) -> tuple[float, float]:
        """Variances of the prompts' and of the sequences' own factor.

        Raises:
            ValueError: the correlation is more than the heterogeneity allows.
        """
        shortest, longest = self.lengths
        inverse_length = float(np.mean(1.0 / np.arange(shortest, longest + 1)))
        noise = 2 * inverse_length / self.kl  # Var(k1) = mu^2 = 2 KL, relative to KL^2
        by_prompt = self.icc * (self.heterogeneity + noise)
        if by_prompt > self.heterogeneity:
            largest = self.heterogeneity / (self.heterogeneity + noise)
            raise ValueError(
                f"icc {self.icc:g} cannot be had: with heterogeneity {self.heterogeneity:g} the "
                f"largest is {largest:.2g}; raise kl, lengths or heterogeneity"
            )
        return by_prompt, (1 + self.heterogeneity) / (1 + by_prompt) - 1

    def sample(self, rng: Generator) -> ClusteredTokens:
        """One step's tokens."""
        by_prompt, by_sequence = self.factor_variances()
        prompts = np.repeat(np.arange(self.prompts), self.completions)
        kl = self.kl * factors(rng, by_prompt, self.prompts)[prompts]
        kl = kl * factors(rng, by_sequence, len(prompts))
        shortest, longest = self.lengths
        length = rng.integers(shortest, longest + 1, len(prompts))
        mu = np.sqrt(2 * kl)[:, None]
        d = mu * rng.normal(size=(len(prompts), longest)) - mu**2 / 2
        return ClusteredTokens(
            tokens=Tokens(q=np.full_like(d, LOG_Q), p=LOG_Q + d),
            mask=np.arange(longest) < length[:, None],
            prompts=prompts,
            kl=self.kl,
        )


def factors(rng: Generator, variance: float, count: int) -> Array:
    """Gamma factors of mean 1; all 1 without variance."""
    if not variance:
        return np.ones(count)
    return rng.gamma(1 / variance, variance, count)
