"""The pass over the tokens on the CPU, compiled by Numba: each is read once, whatever the size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from klmonitor.compiled import run
from klmonitor.pairs import PAIR_INDEX, POLICY_INDEX, Pair, sampler
from klmonitor.summary.batch import TokenBatch
from klmonitor.summary.extremes import Place
from klmonitor.summary.numba_kernel import add_pair
from klmonitor.summary.state import Summary
from klmonitor.summary.tiles import first_shape

BY_PAIR = ("sums", "histogram", "prompts", "maxima", "tokens", "sequences")
"""A pair's part of a state, in the order in which the kernel takes it."""
MOST_COPIED = 2**21
"""Tokens of the largest batch that is copied where the kernel cannot read it as it is."""
NARROW, WIDE = np.dtype(np.float32), np.dtype(np.float64)
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
    behaviour = sampler(batch.log_probs)
    needed = {name for pair in pairs for name in (pair.q, pair.p, behaviour)}
    log_probs = _log_probs({name: batch.log_probs[name] for name in needed})
    mask = NO_MASK if batch.mask is None else _values(batch.mask).view(np.uint8)
    layout = (
        *(mask, batch.shape[1], _offsets(batch), _ids(batch.token_ids), _ids(batch.prompt_ids)),
        *((groups, NO_IDS) if isinstance(groups, int) else (0, _ids(groups))),
    )
    where, checked, counted = (place.rank, place.micro_batch), first_shape(batch), set[str]()
    for pair in pairs:
        name, both = pair.name, (pair.q, pair.p)
        mine = state.by_pair[PAIR_INDEX[name]]
        run(
            add_pair,
            *(log_probs[pair.q], log_probs[pair.p], log_probs[behaviour]),
            *layout,
            behaviour != pair.q,
            where,
            centres.get(name, 0.0),
            tuple(-1 if one in counted else POLICY_INDEX[one] for one in both),
            checked,
            state.arrays["policies"],
            *(mine[part] for part in BY_PAIR),
        )
        counted.update(both)


def _log_probs(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """One array a policy, all float32 or, where one is, float64."""
    found = {name: _values(x) for name, x in tensors.items()}
    dtypes = {x.dtype for x in found.values()}
    if dtypes == {NARROW}:
        return found
    common = WIDE if WIDE in dtypes else NARROW
    return {name: x.astype(common, copy=False) for name, x in found.items()}


def _values(tensor: Tensor) -> NDArray[Any]:
    """A tensor's values, one behind the other; the same memory where it holds them so."""
    try:
        values: NDArray[Any] = tensor.numpy().ravel()
    except TypeError:  # of a dtype that numpy lacks
        return tensor.float().numpy().ravel()
    except RuntimeError:
        if not tensor.is_neg():
            raise
        return tensor.resolve_neg().numpy().ravel()
    return values


def _ids(tensor: Tensor | None) -> NDArray[np.int64]:
    return NO_IDS if tensor is None else _values(tensor).astype(np.int64, copy=False)


def _offsets(batch: TokenBatch) -> NDArray[np.int64]:
    """Flat index of each packed sequence's first token, and the number of tokens."""
    if batch.segments is None:
        return NO_IDS
    return np.searchsorted(batch.segments.numpy(), np.arange(batch.n_sequences + 1))
