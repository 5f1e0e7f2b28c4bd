"""Summary: the fixed-size state of one step, and its one merge.

The merge is associative and commutative, and an empty summary is its identity: sums add, maxima
take the larger, the extreme tokens keep the first sixteen of a total order. What travels over ranks
and in parts has a shape that depends on the configuration alone, never on the data; in memory a
pair that has no tokens has no histogram and no prompts, which are nearly all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from klmonitor.pairs import PAIRS
from klmonitor.summary import around
from klmonitor.summary.around import Around
from klmonitor.summary.fields import (
    MAXIMA,
    N_ORDER,
    N_SEQUENCE_ORDER,
    SEQUENCE_FIELDS,
    TAILS,
    TOKEN_FIELDS,
    SummaryConfig,
)

Floats = NDArray[np.float64]
ORDERED = ("maxima", "tokens", "sequences")
"""What does not merge by adding."""
BULK = ("histogram", "prompts")
"""What a pair has memory for from its first token on."""
BY_PAIR = ("sums", *BULK, *ORDERED)
"""What a pass fills of a pair, in the order in which the compiled one takes it."""
Undo: TypeAlias = Callable[[], None]
"""Gives what a pass writes to the values that it had before."""
MANY = 4
"""Times as many records as are kept from which candidates are chosen before they are sorted."""


class OfPairs(dict[int, Floats]):
    """By a pair's place an array of its own: zeros, made when it is first asked for."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self._shape = shape

    def __missing__(self, pair: int) -> Floats:
        found = self[pair] = np.zeros(self._shape)
        return found


class _View:
    """One of a summary's arrays as a tensor of the same memory, made when it is asked for."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, of: Summary, owner: type | None = None) -> Tensor:
        return torch.from_numpy(of.arrays[self._name])


class _Copy(_View):
    """One of `BULK`, of all pairs, as a tensor of its own."""

    def __get__(self, of: Summary, owner: type | None = None) -> Tensor:
        return torch.from_numpy(sections(of.config, of.whole())[self._name])


@dataclass
class Summary:
    """Sums and maxima over the tokens seen; all float64, on the host.

    Attributes:
        config: what decides the shapes.
        arrays: by name what is kept, with the pairs first; `BULK` are tables by pair. Each is an
            attribute too, as a tensor: `sums`, `policies`, `signatures`, `pulls`, `maxima`,
            `tokens` and `sequences` with the same memory, `histogram` and `prompts` as copies.
            ``maxima``: [pairs, 2], the largest d and the largest -d; -inf where nothing was seen.
            ``tokens``: [pairs, 2 tails, top, TOKEN_FIELDS], in order.
            ``sequences``: [pairs, top, SEQUENCE_FIELDS], in order.
        around: the neighbours of `tokens`, an optional section that no pass writes; None: unknown.
        fresh: whether no pass has added anything yet.
    """

    config: SummaryConfig
    arrays: dict[str, Any]
    around: Around | None = field(default=None, kw_only=True)
    fresh: bool = field(default=False, kw_only=True)
    sums, policies, signatures, pulls, maxima, tokens, sequences = (_View() for _ in range(7))
    histogram, prompts = _Copy(), _Copy()

    @classmethod
    def empty(cls, config: SummaryConfig) -> Summary:
        """A summary of no tokens: the identity of `merge`."""
        dense, bulk = _blank(config)
        arrays: dict[str, Any] = {name: array.copy() for name, array in dense.items()}
        for name, shape in bulk.items():
            arrays[name] = OfPairs(shape)
        return cls(config, arrays, fresh=True)

    @classmethod
    def of_whole(cls, config: SummaryConfig, whole: Floats, *ordered: Floats) -> Summary:
        """The summary that a `whole` is of.

        Args:
            config: its own.
            whole: its sums; copied.
            ordered: `ORDERED`, which it takes the memory of.
        """
        found = cls.empty(config)
        for name, given in sections(config, whole).items():
            if name not in BULK:
                found.arrays[name][...] = given
                continue
            for pair, values in enumerate(given):
                if values.any():
                    found.arrays[name][pair][...] = values
        found.arrays |= dict(zip(ORDERED, ordered, strict=True))
        found.fresh = False
        return found

    def whole(self) -> Floats:
        """Every sum in one new vector, whose length and order the configuration decides."""
        whole = np.zeros(_size(self.config))
        for name, target in sections(self.config, whole).items():
            if name in BULK:
                for pair, values in self.arrays[name].items():
                    target[pair] = values
            else:
                target[...] = self.arrays[name]
        return whole

    def merge(self, other: Summary) -> Summary:
        """The summary of the tokens of both, a new object.

        Laws: ``a.merge(b)`` equals ``b.merge(a)``; ``a.merge(b).merge(c)`` equals
        ``a.merge(b.merge(c))`` to rounding; ``a.merge(Summary.empty(...))`` equals ``a``.

        Raises:
            ValueError: the configurations differ; the message names the difference.
        """
        return merge_all([self, other])

    def take_in(self, later: Summary) -> None:
        """Merge one of tokens that come behind these into this one, in place."""
        self._add_sums(later)
        torch.maximum(self.maxima, later.maxima, out=self.maxima)
        for name in ("tokens", "sequences"):
            mine: Tensor = getattr(self, name)
            both = torch.cat([mine, getattr(later, name)], dim=-2)
            mine.copy_(first_of(both, self.config.top, 1))  # of equal keys the first stays first

    def _add_sums(self, other: Summary) -> None:
        with np.errstate(all="ignore"):  # sums of garbage are infinite, of either sign
            for name in other.config.sum_shapes():
                mine, theirs = self.arrays[name], other.arrays[name]
                if name not in BULK:
                    mine += theirs
                    continue
                for pair, values in theirs.items():
                    mine[pair] += values

    def undo(self, pairs: Iterable[int]) -> Undo:
        """What takes back a pass over the tokens of some pairs that begins now, whatever it did."""
        places = tuple(pairs)
        if self.fresh:
            return partial(self._clear, places)
        return partial(_restore, [(array, array.copy()) for array in self._of_pairs(places)])

    def _of_pairs(self, pairs: Iterable[int]) -> list[Floats]:
        """What a pass over the tokens of some pairs writes to."""
        return [self.arrays["policies"], *(x for pair in pairs for x in self.of_pair(pair))]

    def _clear(self, pairs: Sequence[int]) -> None:
        """Forget the tokens of some pairs, which are all that a pass has added."""
        for array in self._of_pairs(pairs):
            array[...] = 0.0
        dense, _ = _blank(self.config)
        for name in ORDERED:
            for pair in pairs:
                self.arrays[name][pair] = dense[name][pair]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without neighbours."""
        return Summary, (self.config, self.arrays)

    def of_pair(self, pair: int) -> list[Floats]:
        """A pair's part of the arrays `BY_PAIR`."""
        arrays = self.arrays
        return [arrays[name][pair] for name in BY_PAIR]


def _restore(saved: Iterable[tuple[Floats, Floats]]) -> None:
    """Give arrays the values that their copies have, in place."""
    for part, before in saved:
        part[...] = before


def sections(config: SummaryConfig, whole: Floats) -> dict[str, Floats]:
    """The parts of a `Summary.whole`, as views."""
    return {name: whole[part].reshape(shape) for name, (part, shape) in _parts(config).items()}


@cache
def _parts(config: SummaryConfig) -> dict[str, tuple[slice, tuple[int, ...]]]:
    """Where they are, and their shapes."""
    shapes = config.sum_shapes()
    ends = list(accumulate(map(math.prod, shapes.values())))
    return dict(
        zip(shapes, zip(map(slice, (0, *ends), ends), shapes.values(), strict=False), strict=True)
    )


@cache
def _size(config: SummaryConfig) -> int:
    """Of a `Summary.whole`."""
    return sum(map(math.prod, config.sum_shapes().values()))


@cache
def _blank(config: SummaryConfig) -> tuple[dict[str, Floats], dict[str, tuple[int, ...]]]:
    """The arrays of nothing, and the shapes that a pair's part of `BULK` has."""
    shapes = config.sum_shapes()
    dense = {name: np.zeros(shape) for name, shape in shapes.items() if name not in BULK}
    tokens = np.zeros((len(PAIRS), len(TAILS), config.top, len(TOKEN_FIELDS)))
    sequences = np.zeros((len(PAIRS), config.top, len(SEQUENCE_FIELDS)))
    tokens[..., 0] = sequences[..., 0] = -math.inf
    maxima = np.full((len(PAIRS), len(MAXIMA)), -math.inf)
    dense |= dict(zip(ORDERED, (maxima, tokens, sequences), strict=True))
    return dense, {name: shapes[name][1:] for name in BULK}


def merge_all(parts: Sequence[Summary]) -> Summary:
    """Merge any number of summaries (of micro-batches, ranks or steps) into a new one.

    Raises:
        ValueError: no part was given, or configurations differ.
    """
    if not parts:
        raise ValueError("nothing to merge: pass at least one summary")
    first = parts[0]
    for part in parts[1:]:
        if differences := first.config.differences(part.config):
            raise ValueError(
                f"summaries of different configurations do not merge ({'; '.join(differences)}): "
                "give every rank and worker the same settings"
            )
    top = first.config.top
    tokens, beside = first_tokens(
        [part.tokens for part in parts],
        [None if part.around is None else part.around.tensor for part in parts],
        top,
    )
    merged = Summary.empty(first.config)
    for part in parts:
        merged._add_sums(part)
    sequences = torch.cat([part.sequences for part in parts], dim=-2)
    merged.arrays |= {
        "maxima": np.max([part.arrays["maxima"] for part in parts], axis=0),
        "tokens": tokens.numpy(),
        "sequences": first_of(sequences, top, N_SEQUENCE_ORDER).numpy(),
    }
    merged.around, merged.fresh = beside, False
    return merged


def first_tokens(
    tokens: Sequence[Tensor], beside: Sequence[Tensor | None], top: int
) -> tuple[Tensor, Around | None]:
    """The first `top` tokens of several summaries, with their neighbours.

    Args:
        tokens: [pairs, tails, R, TOKEN_FIELDS] of each.
        beside: of each what stood around them (`around.shape`); None: unknown.
        top: how many to keep.
    """
    records = torch.cat(list(tokens), dim=-2)
    if all(one is None for one in beside):
        return first_of(records, top, N_ORDER), None
    number = torch.arange(records.shape[-2], device=records.device).expand(records.shape[:-1])
    found = first_of(torch.cat([records, number.unsqueeze(-1)], dim=-1), top, N_ORDER)
    kept = around.merged(tokens, beside, found[..., -1].long())
    return found[..., :-1].contiguous(), None if kept is None else Around.of(kept)


def first_of(records: Tensor, top: int, n_order: int) -> Tensor:
    """The first `top` records of the total order: largest key, then smallest place.

    Args:
        records: [..., R, F]; field 0 is the key, fields 1 .. n_order - 1 the place.
        top: how many to keep.
        n_order: how many leading fields take part in the order.

    Returns:
        [..., top, F], in order.
    """
    if records.shape[-2] > MANY * top:
        keys = records[..., 0].topk(top + 1, dim=-1)
        if bool((keys.values[..., -2] > keys.values[..., -1]).all()):  # no tie at the threshold
            chosen = keys.indices[..., :top].sort(dim=-1).values
            records = records.gather(
                -2, chosen.unsqueeze(-1).expand(*chosen.shape, records.shape[-1])
            )
    for column in range(n_order - 1, -1, -1):
        order = records[..., column].argsort(dim=-1, descending=column == 0, stable=True)
        records = records.gather(-2, order.unsqueeze(-1).expand_as(records))
    return records[..., :top, :].contiguous()  # for what was compiled
