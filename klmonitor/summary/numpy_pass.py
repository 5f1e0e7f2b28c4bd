"""The pass over a small batch on the CPU, in numpy.

A micro-batch of a few thousand tokens is over before the calls are: what it costs is the number of
calls, and one of numpy's costs a fraction of one of torch's. So the counted tokens are taken out
once, all features of a pair are summed in one call, and tokens that are no candidates for the
extremes are never looked at again. It adds the same numbers to a state as `chunked` does, which
takes every larger batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from klmonitor.batch import TokenBatch
from klmonitor.pairs import PAIR_INDEX, POLICIES, Pair, sampler
from klmonitor.summary.collected import GOLDEN, GRAM_INDEX, SCALES, SOURCES, TAIL
from klmonitor.summary.extremes import Place
from klmonitor.summary.layout import (
    BUCKETS,
    CENTRE,
    CLAMP,
    COLUMN,
    CORE_RADIUS,
    HISTOGRAM,
    LOW_EXPONENT,
    MANTISSA_BITS,
    MOMENTS,
    N_TOKEN_COLUMNS,
    POLICY_COUNTS,
    POSITIVE_TOLERANCE,
    TELLING,
    WEIGHTED,
    SummaryConfig,
)
from klmonitor.summary.state import Summary

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MOST_TOKENS = 16_384
"""Tokens above which torch's faster arithmetic outweighs its dearer calls."""
CORE = COLUMN["core/n"]
WEIGHTS = COLUMN[WEIGHTED[0].name]
TAIL_SOURCES = [TAIL + source for source in SOURCES]
SCALE_COLUMN = np.reshape(SCALES, (-1, 1))
LOWEST = (1023 + LOW_EXPONENT) << MANTISSA_BITS
BY_PAIR = ("sums", "histogram", "prompts", "maxima", "tokens", "sequences")


def fits(batch: TokenBatch) -> bool:
    """Whether a batch is this pass's."""
    rows, columns = batch.shape
    return batch.device.type == "cpu" and rows * columns <= MOST_TOKENS


def add(
    state: Summary,
    batch: TokenBatch,
    pairs: Sequence[Pair],
    *,
    place: Place,
    groups: int | Tensor,
    centres: Mapping[str, float],
) -> None:
    """Add a batch's tokens to a state, in place; arguments as for `passes.accumulate`."""
    behaviour = sampler(batch.log_probs)
    tokens = Tokens.of(batch)
    names = [name for name in POLICIES if any(name in (pair.q, pair.p) for pair in pairs)]
    rows = groups if isinstance(groups, int) else groups.numpy()
    with np.errstate(all="ignore"):  # what is not finite is counted
        counts = policy_counts(np.array([tokens.log_probs[name] for name in names], np.float32))
        state.arrays["policies"][[POLICIES.index(name) for name in names]] += counts
        for pair in pairs:
            mine = {name: state.arrays[name][PAIR_INDEX[pair.name]] for name in BY_PAIR}
            one = _Pair(mine, state.config, batch, tokens, pair, behaviour, place)
            one.add(rows, centres.get(pair.name, 0.0))


@dataclass(frozen=True)
class Tokens:
    """Counted tokens of a batch, in the order of their flat index.

    Attributes:
        log_probs: policy -> log-probs, nats, float32 or float64 [N].
        index: flat index (row * T + column) of each, [N].
        sequence: sequence of each, [N], ascending.
    """

    log_probs: Mapping[str, NDArray[Any]]
    index: Ints
    sequence: Ints

    @classmethod
    def of(cls, batch: TokenBatch) -> Tokens:
        """All tokens that the mask leaves."""
        rows, columns = batch.shape
        values = {name: _flat(x) for name, x in batch.log_probs.items()}
        if batch.mask is None:
            index = np.arange(rows * columns)
        else:
            index = np.flatnonzero(batch.mask.numpy())
            values = {name: x[index] for name, x in values.items()}
        segments = batch.segments
        sequence = index // max(columns, 1) if segments is None else segments.numpy()[index]
        return cls(values, index, sequence)

    def where(self, kept: NDArray[np.bool_]) -> Tokens:
        """Some of them."""
        values = {name: x[kept] for name, x in self.log_probs.items()}
        return Tokens(values, self.index[kept], self.sequence[kept])

    @cached_property
    def starts(self) -> Ints:
        """Where a sequence begins, among these tokens."""
        change = np.flatnonzero(self.sequence[1:] != self.sequence[:-1]) + 1
        return np.concatenate([[0], change])

    def by_sequence(self, values: Floats, n_sequences: int) -> Floats:
        """[k, n_sequences] sums over each sequence of k values a token, [k, N]."""
        sums = np.zeros((len(values), n_sequences))
        if self.sequence.size:
            sums[:, self.sequence[self.starts]] = np.add.reduceat(values, self.starts, axis=1)
        return sums


def _flat(tensor: Tensor) -> NDArray[Any]:
    wide = tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
    flat: NDArray[Any] = wide.resolve_neg().numpy().reshape(-1)
    return flat


def policy_counts(x: NDArray[np.float32]) -> Floats:
    """[policies, POLICY_COUNTS] of log-probs, [policies, N]."""
    counts = np.zeros((len(x), len(POLICY_COUNTS)))
    n = counts[:, 0] = counts[:, 1] = x.shape[1]
    if not (n and x.max() < 0):  # zeros, positives, nan
        counts[:, 1] = np.count_nonzero(x, axis=1)
        counts[:, 2] = (x > POSITIVE_TOLERANCE).sum(1)
    telling = x < -TELLING
    counts[:, 3] = checked = telling.sum(1)
    bits = x.view(np.int32) * telling
    for column, low in ((4, 0xFFFF), (5, 0x1FFF)):  # bits that are 0 in bfloat16, in float16
        counts[:, column] = checked - np.count_nonzero(bits & low, axis=1)
    return counts


@dataclass(frozen=True)
class _Pair:
    """One pair of one batch on its way into a state."""

    state: Mapping[str, Floats]
    config: SummaryConfig
    batch: TokenBatch
    all: Tokens
    pair: Pair
    behaviour: str
    place: Place

    def add(self, groups: int | Ints, centre: float) -> None:
        rows = np.zeros((N_TOKEN_COLUMNS, self.batch.n_sequences))
        tokens, d = self._finite(rows)
        if d.size:
            self._sums(rows, tokens, d)
            histogram, maxima = self.state["histogram"], self.state["maxima"]
            histogram += np.bincount(buckets(d), minlength=HISTOGRAM)
            high, low = d.max(), d.min()
            np.maximum(maxima, (high, -low), out=maxima)
            self._extremes(tokens, d, (-low, high))
        per_sequence = (rows[SOURCES] + rows[TAIL_SOURCES]) * SCALE_COLUMN
        if self.behaviour == self.pair.q:
            rows[COLUMN["on_policy"]] = per_sequence[0]
        self._totals(rows, per_sequence, groups)
        self._sequences(per_sequence, centre)

    def _finite(self, rows: Floats) -> tuple[Tokens, Floats]:
        """The tokens with a finite d, and d; the others are counted."""
        q, p = (self.all.log_probs[name] for name in (self.pair.q, self.pair.p))
        d = np.subtract(p, q, dtype=np.float64)
        d += 0.0  # -0 becomes 0
        finite = np.isfinite(d)
        if finite.all():
            return self.all, d
        nan = np.isnan(d)
        self._count(rows, "nan", self.all, nan)
        self._count(rows, "inf", self.all, ~(nan | finite))
        return self.all.where(finite), d[finite]

    def _count(self, rows: Floats, column: str, tokens: Tokens, which: NDArray[np.bool_]) -> None:
        rows[COLUMN[column]] += np.bincount(tokens.sequence[which], minlength=rows.shape[1])

    def _sums(self, rows: Floats, tokens: Tokens, d: Floats) -> None:
        """Everything that is a sum over tokens, by sequence."""
        size, n_sequences = 1 + len(MOMENTS), rows.shape[1]
        clamped = d
        if d.max() > CORE_RADIUS or d.min() < -CORE_RADIUS:
            far = np.abs(d) > CORE_RADIUS
            clamped = np.minimum(d, CLAMP)
            self._count(rows, "clamped", tokens, d > CLAMP)
            for first, which in ((CORE, ~far), (TAIL, far)):
                part = tokens.where(which)
                values = _moments(d[which], np.expm1(clamped[which]) - d[which])
                rows[first : first + size] = part.by_sequence(values, n_sequences)
        else:
            values = _moments(d, np.expm1(d) - d)
            rows[CORE : CORE + size] = tokens.by_sequence(values, n_sequences)
        if (d == 0).any():
            self._count(rows, "zero", tokens, d == 0)
        if self.behaviour != self.pair.q:
            self._weights(rows, tokens, d, np.expm1(clamped) - d)

    def _weights(self, rows: Floats, tokens: Tokens, d: Floats, k3: Floats) -> None:
        """Importance-weighted sums: w = q(x) / sampler(x), unclamped but for overflow."""
        q, behaviour = (tokens.log_probs[name] for name in (self.pair.q, self.behaviour))
        log_weight = np.subtract(q, behaviour, dtype=np.float64)
        usable = np.isfinite(log_weight)
        if not usable.all():
            self._count(rows, "unweighted", tokens, ~usable)
            log_weight = np.where(usable, log_weight, -np.inf)
        w = np.exp(np.minimum(log_weight, CLAMP))
        values = np.stack([w, w * w, w * d, w * k3])
        rows[WEIGHTS : WEIGHTS + len(WEIGHTED)] = tokens.by_sequence(values, rows.shape[1])

    def _totals(self, rows: Floats, per_sequence: Floats, groups: int | Ints) -> None:
        """Sums over sequences, their products, and sums by prompt."""
        sums, prompts = self.state["sums"], self.batch.prompt_ids
        for group, chosen in _by_group(groups):
            some, seen = per_sequence[:, chosen], np.count_nonzero(per_sequence[0, chosen])
            prompted = 0 if prompts is None else seen
            products = (some @ some.T).ravel()[GRAM_INDEX]
            sums[group] += np.concatenate([rows[:, chosen].sum(1), (seen, prompted), products])
        if prompts is not None and self.config.buckets_per_group:
            mixed = (prompts.numpy() * np.int64(GOLDEN)) >> 32  # wraps around, as it should
            bucket = (mixed & 0x7FFFFFFF) % self.config.buckets_per_group
            bucket += groups * self.config.buckets_per_group
            np.add.at(self.state["prompts"].reshape(-1, len(SCALES)), bucket, per_sequence.T)

    def _extremes(self, tokens: Tokens, d: Floats, largest: tuple[float, float]) -> None:
        """The extreme tokens of each tail, with those that the state has."""
        left, right = self.state["tokens"]
        first = self._candidates(d, -1.0, largest[0], left)
        second = self._candidates(d, 1.0, largest[1], right)
        records = self._records(tokens, np.concatenate([first, second]), d, left.shape[1])
        _merge(left, records[: first.size])
        _merge(right, records[first.size :])

    def _candidates(self, d: Floats, sign: float, most: float, kept: Floats) -> Ints:
        """Tokens that may enter a tail, in order; among equal keys the earlier place stays."""
        least, top = max(float(kept[-1, 0]), 0.0), len(kept)
        if most <= least:
            return np.empty(0, np.int64)
        if not least and d.size > 4 * top:
            at = d.size - top if sign > 0 else top - 1
            least = math.nextafter(max(sign * np.partition(d, at)[at], 0.0), 0.0)
        found = np.flatnonzero(d > least if sign > 0 else d < -least)
        return found[np.argsort(-sign * d[found], kind="stable")[:top]]

    def _records(self, tokens: Tokens, chosen: Ints, d: Floats, n_fields: int) -> Floats:
        """[n, TOKEN_FIELDS] of some tokens."""
        batch, flat, sequence = self.batch, tokens.index[chosen], tokens.sequence[chosen]
        if batch.segments is None:
            first = sequence * batch.shape[1]
        else:
            first = np.searchsorted(batch.segments.numpy(), sequence)
        ids, prompts = batch.token_ids, batch.prompt_ids
        records = np.empty((chosen.size, n_fields))
        records[:, 0] = np.abs(d[chosen])
        records[:, 1:3] = self.place.rank, self.place.micro_batch
        records[:, 3] = sequence
        records[:, 4] = flat - first
        records[:, 5] = tokens.log_probs[self.pair.q][chosen]
        records[:, 6] = tokens.log_probs[self.pair.p][chosen]
        records[:, 7] = -1 if ids is None else ids.numpy().reshape(-1)[flat]
        records[:, 8] = -1 if prompts is None else prompts.numpy()[sequence]
        return records

    def _sequences(self, per_sequence: Floats, centre: float) -> None:
        """The sequences whose S1 is furthest from `centre` x T, with those that the state has."""
        kept = self.state["sequences"]
        t, k1 = per_sequence[:2]
        key = np.where(t > 0, np.abs(k1 - centre * t), -math.inf)
        candidates = np.flatnonzero(key > kept[-1, 0])
        chosen = candidates[np.argsort(-key[candidates], kind="stable")[: len(kept)]]
        records = np.empty((chosen.size, kept.shape[1]))
        records[:, 0] = key[chosen]
        records[:, 1:3] = self.place.rank, self.place.micro_batch
        records[:, 3] = chosen
        records[:, 4:] = per_sequence[(0, 1, 3), :][:, chosen].T
        _merge(kept, records)


def _moments(d: Floats, k3: Floats) -> Floats:
    """[1 + MOMENTS, N]: 1, then every product of `layout.MOMENTS`."""
    values = np.empty((1 + len(MOMENTS), d.size))
    values[0] = 1.0
    features = {"d": d, "abs": np.abs(d), "d2": d * d, "k3": k3}
    for moment, row in zip(MOMENTS, values[1:], strict=True):
        if moment.right == "one":
            row[:] = features[moment.left]
        else:
            np.multiply(features[moment.left], features[moment.right], out=row)
    return values


def _by_group(groups: int | Ints) -> Iterator[tuple[int, Any]]:
    """(row of a group, which sequences)."""
    if isinstance(groups, int):
        yield groups, slice(None)
        return
    for group in np.unique(groups):
        yield int(group), np.flatnonzero(groups == group)


def _merge(kept: Floats, found: Floats) -> None:
    """Put records, in order, among those kept, in place: the largest keys, the earlier first."""
    if kept[0, 0] == -math.inf:
        kept[: len(found)] = found
        return
    both = np.concatenate([kept, found])
    kept[:] = both[np.argsort(-both[:, 0], kind="stable")[: len(kept)]]


def buckets(d: Floats) -> Ints:
    """Histogram bucket of each d, finite: its leading bits (`pairsums.buckets`, in numpy)."""
    bits = d.view(np.int64)
    index = (bits >> (52 - MANTISSA_BITS)) & ((1 << (11 + MANTISSA_BITS)) - 1)
    index -= LOWEST - 1
    np.maximum(index, 0, out=index)
    np.minimum(index, BUCKETS + 1, out=index)
    index ^= bits >> 63  # 0, or -1 for a negative d
    index += CENTRE
    return index
