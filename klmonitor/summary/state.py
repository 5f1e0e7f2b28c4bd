"""Summary: the fixed-size state of one step, and its one merge.

The merge is associative and commutative, and an empty summary is its identity: sums add, maxima
take the larger, the extreme tokens keep the first sixteen of a total order. Its shape depends on
the configuration alone, never on the data, so every rank can take part in a reduction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from klmonitor.summary.once import once

Floats = NDArray[np.float64]
_ARRAYS = ("maxima", "tokens", "sequences")
BY_PAIR = ("sums", "histogram", "prompts", *_ARRAYS)
"""What a pass fills of a pair, in the order in which the compiled one takes it."""
Undo: TypeAlias = Callable[[], None]
"""Gives what a pass writes to the values that it had before."""
MANY = 4
"""Times as many records as are kept from which candidates are chosen before they are sorted."""


class _View:
    """A part of `Summary.flat` in its shape; made when it is asked for, as most are not."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, of: Summary, owner: type | None = None) -> Tensor:
        part, shape = _parts(of.config)[self._name]
        return of.flat[part].view(shape)


@dataclass
class Summary:
    """Sums and maxima over the tokens seen; all tensors float64, on the host.

    Attributes:
        config: what decides the shapes.
        flat: every sum in one vector; `sums`, `histogram`, `prompts`, `policies`, `signatures` and
            `pulls` are views of it.
        maxima: [pairs, 2], the largest d and the largest -d; -inf where nothing was seen.
        tokens: [pairs, 2 tails, top, TOKEN_FIELDS], in order.
        sequences: [pairs, top, SEQUENCE_FIELDS], in order.
        around: the neighbours of `tokens`, an optional section that no pass writes; None: unknown.
        fresh: whether no pass has added anything yet.
    """

    config: SummaryConfig
    flat: Tensor
    maxima: Tensor
    tokens: Tensor
    sequences: Tensor
    around: Around | None = field(default=None, kw_only=True)
    fresh: bool = field(default=False, kw_only=True)
    sums, histogram, prompts, policies, signatures, pulls = (_View() for _ in range(6))

    @classmethod
    def empty(cls, config: SummaryConfig) -> Summary:
        """A summary of no tokens: the identity of `merge`."""
        # torch would copy by all threads, which spin for milliseconds afterwards, on the cores that
        # the pass needs.
        parts = (np.zeros(_size(config)), *(part.copy() for part in _no_maxima(config.top)))
        return cls(config, *map(torch.from_numpy, parts), fresh=True)

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
        self.flat.numpy()[:] += later.flat.numpy()
        torch.maximum(self.maxima, later.maxima, out=self.maxima)
        for name in ("tokens", "sequences"):
            mine: Tensor = getattr(self, name)
            both = torch.cat([mine, getattr(later, name)], dim=-2)
            mine.copy_(first_of(both, self.config.top, 1))  # of equal keys the first stays first

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
        for name, nothing in zip(_ARRAYS, _no_maxima(self.config.top), strict=True):
            for pair in pairs:
                self.arrays[name][pair] = nothing[pair]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the views, which would come back detached, and without neighbours."""
        return Summary, (self.config, self.flat, self.maxima, self.tokens, self.sequences)

    @once
    def arrays(self) -> Mapping[str, Floats]:
        """The same memory as numpy arrays, by attribute."""
        flat, parts = self.flat.numpy(), _parts(self.config)
        found = {name: flat[part].reshape(shape) for name, (part, shape) in parts.items()}
        return found | {name: getattr(self, name).numpy() for name in _ARRAYS}

    def of_pair(self, pair: int) -> list[Floats]:
        """A pair's part of the arrays `BY_PAIR`."""
        return [self.arrays[name][pair] for name in BY_PAIR]


def _restore(saved: Iterable[tuple[Floats, Floats]]) -> None:
    """Give arrays the values that their copies have, in place."""
    for part, before in saved:
        part[...] = before


@cache
def _size(config: SummaryConfig) -> int:
    """Of `flat`."""
    return sum(math.prod(shape) for _, shape in _parts(config).values())


@cache
def _parts(config: SummaryConfig) -> dict[str, tuple[slice, tuple[int, ...]]]:
    """What `flat` consists of: places and shapes by name."""
    shapes = config.sum_shapes()
    ends = list(accumulate(map(math.prod, shapes.values())))
    places = map(slice, (0, *ends), ends)
    return {
        name: (place, shape) for place, (name, shape) in zip(places, shapes.items(), strict=True)
    }


@cache
def _no_maxima(top: int) -> tuple[Floats, Floats, Floats]:
    """`maxima`, `tokens` and `sequences` of nothing."""
    tokens = np.zeros((len(PAIRS), len(TAILS), top, len(TOKEN_FIELDS)))
    sequences = np.zeros((len(PAIRS), top, len(SEQUENCE_FIELDS)))
    tokens[..., 0] = sequences[..., 0] = -math.inf
    return np.full((len(PAIRS), len(MAXIMA)), -math.inf), tokens, sequences


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
    return Summary(
        first.config,
        flat=torch.stack([part.flat for part in parts]).sum(0),
        maxima=torch.stack([part.maxima for part in parts]).amax(0),
        tokens=tokens,
        sequences=first_of(
            torch.cat([part.sequences for part in parts], dim=-2), top, N_SEQUENCE_ORDER
        ),
        around=beside,
    )


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
