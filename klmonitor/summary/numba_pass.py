"""The pass over the tokens on the CPU, compiled by Numba: each is read once, whatever the size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from klmonitor.pairs import PAIR_INDEX, POLICY_INDEX, Pair, sampler
from klmonitor.summary.arrays import NO_IDS, ids
from klmonitor.summary.batch import TokenBatch
from klmonitor.summary.extremes import Place
from klmonitor.summary.numba_kernel import add_pair
from klmonitor.summary.state import Summary
from klmonitor.summary.tiles import first_shape

LEAST_A_THREAD = 2**21
"""Tokens below which another thread costs more than it saves: torch's last operation has left
threads spinning on the cores that it needs (docs/performance.md)."""
NONE = (0, 0)
MOST_COPIED = 2**21
"""Tokens of the largest batch that is copied where the kernel cannot read it as it is."""
NARROW, WIDE = np.dtype(np.float32), np.dtype(np.float64)


def fits(batch: TokenBatch) -> bool:
    """Whether the kernel can take a batch: it can be read as it is, or is small."""
    rows, columns = batch.shape
    if rows * columns <= MOST_COPIED:
        return rows * columns > 0
    others = [x for x in (batch.mask, batch.token_ids) if x is not None]
    return (
        all(x.dtype == torch.float32 for x in batch.log_probs.values())
        and all(x.is_contiguous() for x in (*batch.log_probs.values(), *others))
        and (batch.token_ids is None or batch.token_ids.dtype == torch.int64)
    )


def add(
    state: Summary, batch: TokenBatch, pairs: Sequence[Pair], place: Place, groups: int | Tensor
) -> None:
    """Add a batch that `fits` to a state, in place; arguments as for `passes.accumulate`.

    A large one is shared out over as many threads as torch uses, each with some sequences.
    """
    values = _Values.of(batch, pairs, groups)
    threads = min(values.tokens // LEAST_A_THREAD, batch.n_sequences)
    if threads > 1:
        threads = min(threads, torch.get_num_threads())
    if threads < 2:
        values.add_to(state, pairs, place, first_shape(batch))
        return
    cuts = np.linspace(0, batch.n_sequences, threads + 1).astype(np.int64).tolist()

    def summed(ends: tuple[int, int]) -> Summary:
        apart = Summary.empty(state.config)
        values.between(*ends).add_to(apart, pairs, place, NONE)
        return apart

    first, *others = pairwise(cuts)
    later = [_threads(threads - 1).submit(summed, ends) for ends in others]
    values.between(*first).add_to(state, pairs, place, first_shape(batch))
    for done in later:
        state.take_in(done.result())


class _Values(NamedTuple):
    """A batch as the kernel takes it; a part of one, from the sequence `before` on.

    Attributes:
        log_probs: policy -> [N] values, all float32 or all float64.
        behaviour: the policy that drew the tokens.
        mask: uint8 [N], or empty: all count.
        columns: tokens of each sequence, where they are the same.
        offsets: else flat index of each packed sequence's first token, and N; or empty.
        token_ids: int64 [N], or empty.
        prompt_ids: int64 [sequences], or empty.
        group: row of all sequences' group, or 0.
        groups: row of each sequence's, or empty.
        before: sequences of the batch before these.
    """

    log_probs: Mapping[str, NDArray[Any]]
    behaviour: str
    mask: NDArray[np.uint8]
    columns: int
    offsets: NDArray[np.int64]
    token_ids: NDArray[np.int64]
    prompt_ids: NDArray[np.int64]
    group: int
    groups: NDArray[np.int64]
    before: int = 0

    @classmethod
    def of(cls, batch: TokenBatch, pairs: Sequence[Pair], groups: int | Tensor) -> _Values:
        """A whole batch."""
        behaviour, arrays = sampler(batch.log_probs), batch.arrays
        needed = {name for pair in pairs for name in (pair.q, pair.p, behaviour)}
        return cls(
            log_probs=_alike({name: arrays.log_probs[name] for name in needed}),
            behaviour=behaviour,
            mask=arrays.mask,
            columns=batch.shape[1],
            offsets=arrays.offsets,
            token_ids=ids(batch.token_ids),
            prompt_ids=ids(batch.prompt_ids),
            group=groups if isinstance(groups, int) else 0,
            groups=NO_IDS if isinstance(groups, int) else ids(groups),
        )

    @property
    def tokens(self) -> int:
        """N."""
        return int(self.log_probs[self.behaviour].size)

    def between(self, first: int, last: int) -> _Values:
        """The sequences from one to another, as views."""
        ends = (
            (int(self.offsets[first]), int(self.offsets[last]))
            if self.offsets.size
            else (first * self.columns, last * self.columns)
        )
        tokens, rows = slice(*ends), slice(first, last)
        return self._replace(
            log_probs={name: values[tokens] for name, values in self.log_probs.items()},
            mask=self.mask[tokens],
            offsets=self.offsets[first : last + 1] - ends[0] if self.offsets.size else self.offsets,
            token_ids=self.token_ids[tokens],
            prompt_ids=self.prompt_ids[rows],
            groups=self.groups[rows],
            before=first,
        )

    def add_to(
        self, state: Summary, pairs: Sequence[Pair], place: Place, checked: tuple[int, int]
    ) -> None:
        """Add every token to a state, in place.

        Args:
            state: on the CPU.
            pairs: which pairs.
            place: where the batch came from.
            checked: rows, and leading tokens of each, whose bits are looked at.
        """
        counted: set[str] = set()
        for pair in pairs:
            both = (pair.q, pair.p)
            add_pair(
                *(self.log_probs[name] for name in (*both, self.behaviour)),
                *(self.mask, self.columns, self.before, self.offsets),
                *(self.token_ids, self.prompt_ids, self.group, self.groups),
                self.behaviour != pair.q,
                (place.rank, place.micro_batch),
                tuple(-1 if one in counted else POLICY_INDEX[one] for one in both),
                checked,
                state.arrays["policies"],
                *state.of_pair(PAIR_INDEX[pair.name]),
            )
            counted.update(both)


@cache
def _threads(number: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(number, thread_name_prefix="klmonitor: pass")


def _alike(found: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """All float32 or, where one is, float64."""
    dtypes = {x.dtype for x in found.values()}
    if dtypes == {NARROW}:
        return found
    common = WIDE if WIDE in dtypes else NARROW
    return {name: x.astype(common, copy=False) for name, x in found.items()}


def all_narrow(batch: TokenBatch) -> bool:
    """Whether float32 holds all of a batch's log-probs."""
    return torch.float64 not in batch.dtypes
