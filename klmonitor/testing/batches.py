"""Token batches that go wrong in known ways, as numpy arrays, with exact policies behind them.

Every token has a context of its own with a vocabulary of Zipf-like logits: exponent
a = clip(exp(N(1.15, 0.75)), 1.05, 14), l = -a log(rank) + N(0, 0.5), q = softmax(l),
p = softmax(l + N(0, noise)). Tokens are drawn from q unless the pathology is that they are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from klmonitor.numbers.dominance import dominance_k1, dominance_k3
from klmonitor.numbers.explain import judged
from klmonitor.numbers.student import deviate_of_t
from klmonitor.report import ExtremeToken, PairReport, Report

Floats = NDArray[np.float64]

TOP_TOKENS = 16
"""Extreme tokens kept of each tail."""


@dataclass(frozen=True)
class TokenArrays:
    """One batch of one pair q_p.

    Attributes:
        log_q: [B, T] log-probs under q, nats.
        log_p: [B, T] log-probs under p, nats.
        mask: [B, T], True where a token counts.
        token_ids: [B, T] vocabulary ids.
        what: what is wrong with it, in a line.
    """

    log_q: Floats
    log_p: Floats
    mask: NDArray[np.bool_]
    token_ids: NDArray[np.int64]
    what: str = ""

    @property
    def log_ratio(self) -> Floats:
        """[B, T] d = log p - log q."""
        return self.log_p - self.log_q


@dataclass(frozen=True)
class _Draw:
    """Logits of both policies, those that the sampler used, and its random numbers."""

    q: Floats
    p: Floats
    sampler: Floats
    rng: np.random.Generator


Pathology = Callable[[_Draw], _Draw]


def _log_softmax(logits: Floats) -> Floats:
    shifted: Floats = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def _collapse(draw: _Draw) -> _Draw:
    """In 5 % of the contexts q is certain of a token that p gives half its mass."""
    q, p, rows = draw.q.copy(), draw.p.copy(), draw.rng.random(len(draw.q)) < 0.05
    best = np.argsort(-q[rows], axis=1)[:, :2]
    size = q.shape[1] - 2
    for logits, (first, second, rest) in (
        (q, (1 - 1.1e-5, 1e-5, 1e-6)),
        (p, (0.45, 0.5, 0.05)),
    ):
        block = np.full((int(rows.sum()), q.shape[1]), math.log(rest / size))
        np.put_along_axis(block, best[:, :1], math.log(first), axis=1)
        np.put_along_axis(block, best[:, 1:], math.log(second), axis=1)
        logits[rows] = block
    return replace(draw, q=q, p=p, sampler=q)


def _top_p(draw: _Draw, keep: float = 0.95) -> _Draw:
    """The sampler draws from q cut at 95 % of its mass; the trainer computes the whole q."""
    probabilities = np.exp(_log_softmax(draw.q))
    order = np.argsort(-probabilities, axis=1)
    ordered = np.take_along_axis(probabilities, order, axis=1)
    cut = np.cumsum(ordered, axis=1) - ordered >= keep
    sampler = draw.q.copy()
    np.put_along_axis(
        sampler, order, np.where(cut, -np.inf, np.take_along_axis(sampler, order, 1)), axis=1
    )
    return replace(draw, sampler=sampler)


def _stale(draw: _Draw) -> _Draw:
    """The sampler's weights are not q's: its logits differ by N(0, 0.3)."""
    return replace(draw, sampler=draw.q + draw.rng.normal(0, 0.3, draw.q.shape))


def _wider(draw: _Draw) -> _Draw:
    """Catastrophes: in 0.4 % of the contexts p's probabilities are permuted."""
    p, rows = draw.p.copy(), np.flatnonzero(draw.rng.random(len(draw.p)) < 0.004)
    p[rows] = draw.rng.permuted(p[rows], axis=1)
    return replace(draw, p=p)


def _one_token(log_ratio: float) -> Callable[[TokenArrays], TokenArrays]:
    """Plant a token with this d in an otherwise ordinary batch."""

    def plant(batch: TokenArrays) -> TokenArrays:
        log_q, log_p = batch.log_q.copy(), batch.log_p.copy()
        where = (len(log_q) // 2, log_q.shape[1] // 2)
        log_q[where] = -0.01 - max(log_ratio, 0.0)
        log_p[where] = -0.01 + min(log_ratio, 0.0)
        return replace(batch, log_q=log_q, log_p=log_p)

    return plant


def _nan_storm(batch: TokenArrays) -> TokenArrays:
    """A tenth of the sequences (at least one) has NaN under p, one token has an infinity."""
    log_p = batch.log_p.copy()
    log_p[: max(len(log_p) // 10, 1)] = np.nan
    log_p[-1, 0] = -np.inf
    return replace(batch, log_p=log_p)


_DRAWS: Mapping[str, tuple[Pathology, str]] = {
    "clean": (lambda draw: draw, "nothing"),
    "collapse": (_collapse, "q is certain of tokens that p is not: k3 misses most of the KL"),
    "top_p": (_top_p, "the sampler cuts q at 95 % of its mass"),
    "stale": (_stale, "the sampler has other weights than q"),
    "catastrophe": (_wider, "p disagrees wildly on few contexts: k2 is far too high"),
}
_CHANGES: Mapping[str, tuple[Callable[[TokenArrays], TokenArrays], str]] = {
    "one_token_left": (_one_token(-40.0), "one token with d = -40 carries k1, and k3 as well"),
    "one_token_right": (_one_token(8.0), "one token with d = +8 carries k3"),
    "nan_storm": (_nan_storm, "a tenth of the sequences is NaN under p"),
}
BATCHES: tuple[str, ...] = (*_DRAWS, *_CHANGES)
"""Names of the batches that `token_batch` makes."""


def token_batch(
    name: str = "clean",
    *,
    sequences: int = 32,
    length: int = 64,
    vocabulary: int = 256,
    noise: float = 0.1,
    seed: int = 0,
) -> TokenArrays:
    """A batch of tokens with known policies behind it.

    Args:
        name: one of `BATCHES`.
        sequences: B.
        length: T, of the longest sequence; others are shorter by up to a half.
        vocabulary: size of every context's distribution.
        noise: standard deviation of the logits' difference of p and q.
        seed: of the random numbers.

    Raises:
        ValueError: no such batch.
    """
    if name not in BATCHES:
        raise ValueError(f"unknown batch {name!r}: choose from {', '.join(BATCHES)}")
    rng = np.random.default_rng(seed)
    contexts = sequences * length
    exponent = np.clip(np.exp(rng.normal(1.15, 0.75, (contexts, 1))), 1.05, 14)
    ranks = np.log(np.arange(1, vocabulary + 1))
    q = -exponent * ranks + rng.normal(0, 0.5, (contexts, vocabulary))
    draw = _Draw(q=q, p=q + rng.normal(0, noise, q.shape), sampler=q, rng=rng)
    pathology, what = _DRAWS.get(name, _DRAWS["clean"])
    draw = pathology(draw)
    gumbel = draw.rng.gumbel(size=q.shape)
    ids = np.argmax(draw.sampler + gumbel, axis=1)[:, None]
    lengths = rng.integers(length // 2, length + 1, (sequences, 1))
    shape = (sequences, length)
    batch = TokenArrays(
        log_q=np.take_along_axis(_log_softmax(draw.q), ids, axis=1).reshape(shape),
        log_p=np.take_along_axis(_log_softmax(draw.p), ids, axis=1).reshape(shape),
        mask=np.arange(length) < np.maximum(lengths, 1),
        token_ids=ids.reshape(shape),
        what=what,
    )
    if name in _CHANGES:
        change, what = _CHANGES[name]
        batch = replace(change(batch), what=what)
    return batch


def batch_report(
    batch: TokenArrays, step: int = 0, pair: str = "policy_ref", *, on_policy: bool = True
) -> Report:
    """What a monitor reports of a batch, from plain sums over its tokens.

    Holds the numbers that rules read, and the extreme tokens. Dominance and the deviates of t are
    the package's own, so this is no reference for these.
    """
    finite = batch.mask & np.isfinite(batch.log_ratio)
    lengths = finite.sum(axis=1)
    d = np.where(finite, batch.log_ratio, 0.0)
    k1, k3 = -d, np.expm1(d) - d
    n = float(lengths.sum())
    values: dict[str, float] = {
        "tokens": n,
        "sequences": float(np.count_nonzero(lengths)),
        "nonfinite": float(batch.mask.sum() - finite.sum()),
        "on_policy": float(on_policy),
        "low_precision": 0.0,
    }
    extremes: tuple[ExtremeToken, ...] = ()
    if n > 1:
        extremes = _extremes(batch, d, finite, pair)
        left = [-token.log_ratio for token in extremes if token.tail == "left"]
        right = [token.log_ratio for token in extremes if token.tail == "right"]
        for name, value in (("k1", k1), ("k3", k3), ("gap", k3 - k1)):
            mean = float(value.sum()) / n
            values[f"{name}/mean"] = mean
            values[f"{name}/se"] = _cluster_error(value.sum(axis=1), lengths, mean)
            values[f"{name}/var"] = float(value[finite].var(ddof=1))
        values["gap"] = values.pop("gap/mean")
        clusters = int(np.count_nonzero(lengths))
        values["gap_z"] = deviate_of_t(values["gap"] / values.pop("gap/se"), clusters - 1)
        values["outliers/rate"] = 1e4 * float(np.count_nonzero(np.abs(d) >= 2)) / n
        found = {
            "k1": dominance_k1(
                n, values["k1/mean"], values["k1/var"], float(np.abs(d).sum()), left, right
            ),
            "k3": dominance_k3(n, values["k3/mean"], values["k3/var"], left, right),
        }
        for name, dominance in found.items():
            for field in ("level", "v", "j", "top_share", "tokens"):
                values[f"dominance/{name}/{field}"] = getattr(dominance, field)
            values[f"{name}/mean_without_top"] = dominance.mean_without_top
    report = judged(PairReport(pair, values, extremes))
    return Report(step=step, first_step=step, pairs={pair: report})


def _cluster_error(sums: Floats, lengths: NDArray[np.int64], mean: float) -> float:
    """Standard error of a ratio of sums over sequences; nan for fewer than two."""
    b = np.count_nonzero(lengths)
    if b < 2:
        return math.nan
    squares = float(((sums - mean * lengths) ** 2).sum())
    return math.sqrt(b / (b - 1) * squares) / float(lengths.sum())


def _extremes(
    batch: TokenArrays, d: Floats, counted: NDArray[np.bool_], pair: str
) -> tuple[ExtremeToken, ...]:
    """The largest of each tail, most extreme first, left before right."""
    flat = np.where(counted, d, 0.0).ravel()
    order = np.argsort(flat, kind="stable")
    left = [i for i in order[:TOP_TOKENS] if flat[i] < 0]
    right = [i for i in order[::-1][:TOP_TOKENS] if flat[i] > 0]
    return tuple(
        ExtremeToken(
            pair=pair,
            tail=tail,
            log_ratio=float(flat[i]),
            log_q=float(batch.log_q.flat[i]),
            log_p=float(batch.log_p.flat[i]),
            rank=0,
            micro_batch=0,
            sequence=int(i // d.shape[1]),
            position=int(i % d.shape[1]),
            token_id=int(batch.token_ids.flat[i]),
        )
        for tail, chosen in (("left", left), ("right", right))
        for i in chosen
    )
