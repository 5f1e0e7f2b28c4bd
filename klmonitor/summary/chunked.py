"""The pass over the tokens in plain torch: any layout, a few buffers of one tile.

Here the tiles are cut, masked and counted by policy; `pairsums` sums them by pair.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from klmonitor.pairs import POLICIES, Pair, sampler
from klmonitor.summary.batch import TokenBatch
from klmonitor.summary.collected import Collection
from klmonitor.summary.extremes import Place
from klmonitor.summary.fields import POLICY_COUNTS, POSITIVE_TOLERANCE, TELLING
from klmonitor.summary.pairsums import Buffers, PairSums
from klmonitor.summary.state import Summary
from klmonitor.summary.tiles import TileMask, tiles


def add(
    state: Summary, batch: TokenBatch, pairs: Sequence[Pair], place: Place, groups: int | Tensor
) -> None:
    """Add a batch to a state, in place; arguments as for `passes.accumulate`."""
    found = collect(batch, pairs, by_row=not isinstance(groups, int))
    found.add_to(state, place, groups)


def collect(batch: TokenBatch, pairs: Sequence[Pair], *, by_row: bool) -> Collection:
    """Sum a batch tile by tile.

    Args:
        batch: checked log-probs; the pairs' policies must be in it.
        pairs: which pairs.
        by_row: keep every count by sequence.
    """
    policies = [name for name in POLICIES if any(name in (p.q, p.p) for p in pairs)]
    behaviour = sampler(batch.log_probs)
    needed = [*policies, *({behaviour} - set(policies))]
    buffers = Buffers.of(batch)
    found = [PairSums.of(batch, pair, behaviour, buffers, by_row=by_row) for pair in pairs]
    zeros = torch.zeros(len(policies), len(POLICY_COUNTS), dtype=torch.float64, device=batch.device)
    counts = dict(zip(policies, zeros, strict=True))
    for number, tile in enumerate(tiles(batch)):
        mask = TileMask.of(tile, batch)
        log_probs = {name: mask.apply(tile.of(batch.log_probs[name])) for name in needed}
        for name in policies:
            counts[name] += _policy_counts(log_probs[name], mask, precision=number == 0)
        for sums in found:
            sums.add(mask, log_probs)
    return Collection(counts, [sums for sums in found if sums.extremes.starts])


def _policy_counts(x: Tensor, mask: TileMask, *, precision: bool) -> Tensor:
    """[POLICY_COUNTS] of a tile; the bits are looked at in the first tile of a batch only."""
    n = mask.total
    nothing = torch.zeros_like(n)
    if not precision and bool(x.amax() < 0):  # neither zeros nor positives
        return torch.stack([n, n, nothing, nothing, nothing, nothing])
    x = x.float()
    nonzero = n - x.numel() + x.count_nonzero()  # masked values are not zero
    positive = (x > POSITIVE_TOLERANCE).sum()
    checked = bf16 = fp16 = nothing
    if precision:
        telling = x < -TELLING
        if mask.mask is not None:
            telling &= mask.mask
        bits = torch.where(telling, x, 0.0).view(torch.int32)
        checked = telling.sum()
        bf16, fp16 = (checked - (bits & low).count_nonzero() for low in (0xFFFF, 0x1FFF))
    return torch.stack([n, nonzero, positive, checked, bf16, fp16])
