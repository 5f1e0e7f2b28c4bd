"""The pass over the tokens on the CPU, compiled by Numba: each is read once, whatever the size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from klmonitor.batch import TokenBatch
from klmonitor.compiled import run
from klmonitor.pairs import PAIR_INDEX, POLICIES, Pair, sampler
from klmonitor.summary.extremes import Place
from klmonitor.summary.numba_kernel import add_pair, add_policy
from klmonitor.summary.state import Summary
from klmonitor.summary.tiles import first_shape

BY_PAIR = ("sums", "histogram", "prompts", "maxima", "tokens", "sequences")
"""A pair's part of a state, in the order in which the kernel takes it."""
MOST_COPIED = 2**21
"""Tokens of the largest batch that is copied where the kernel cannot read it as it is."""
NO_MASK, NO_IDS = np.empty(0, np.uint8), np.empty(0, np.int64)


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
    state: Summary,
    batch: TokenBatch,
    pairs: Sequence[Pair],
    *,
    place: Place,
    groups: int | Tensor,
    centres: Mapping[str, float],
) -> None:
    """Add a batch that `fits` to a state, in place; arguments as for `passes.accumulate`."""
    names = {name for pair in pairs for name in (pair.q, pair.p)}
    behaviour = sampler(batch.log_probs)
    log_probs = _log_probs({name: batch.log_probs[name] for name in (*names, behaviour)})
    mask = NO_MASK if batch.mask is None else _array(batch.mask, torch.bool).view(np.uint8)
    columns, checked = batch.shape[1], first_shape(batch)
    layout = (
        *(mask, columns, _offsets(batch), _ids(batch.token_ids), _ids(batch.prompt_ids)),
        *((groups, NO_IDS) if isinstance(groups, int) else (0, _ids(groups))),
    )
    for name in names:
        counts = state.arrays["policies"][POLICIES.index(name)]
        x = log_probs[name]
        if x.dtype != np.float32:
            with np.errstate(over="ignore"):
                x = x.astype(np.float32)
        run(add_policy, x, mask, columns, *checked, counts)
    for pair in pairs:
        mine = state.by_pair[PAIR_INDEX[pair.name]]
        run(
            add_pair,
            *(log_probs[name] for name in (pair.q, pair.p, behaviour)),
            *layout,
            behaviour != pair.q,
            (place.rank, place.micro_batch),
            centres.get(pair.name, 0.0),
            *(mine[part] for part in BY_PAIR),
        )


def _log_probs(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """One array a policy, all float32 or, where one is, float64."""
    wide = any(x.dtype == torch.float64 for x in tensors.values())
    dtype = torch.float64 if wide else torch.float32
    return {name: _array(x, dtype) for name, x in tensors.items()}


def _array(tensor: Tensor, dtype: torch.dtype) -> NDArray[Any]:
    """A tensor's values, one behind the other; the same memory where it holds them so."""
    if tensor.dtype != dtype:
        tensor = tensor.to(dtype)
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    values: NDArray[Any] = tensor.numpy().ravel()
    return values


def _ids(tensor: Tensor | None) -> NDArray[np.int64]:
    return NO_IDS if tensor is None else _array(tensor, torch.int64)


def _offsets(batch: TokenBatch) -> NDArray[np.int64]:
    """Flat index of each packed sequence's first token, and the number of tokens."""
    if batch.segments is None:
        return NO_IDS
    return np.searchsorted(batch.segments.numpy(), np.arange(batch.n_sequences + 1))
