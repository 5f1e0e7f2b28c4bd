"""Mean |d| by where a token is: by tenth of its sequence, and by turn.

Computed of held batches (`klmonitor.summary.around`) when somebody asks, at a step with an alert.
A turn is a stretch of tokens that count; what lies between two is the user's, or a tool's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from klmonitor.pairs import Pair
from klmonitor.summary.batch import TokenBatch


def place_sums(batch: TokenBatch, pair: Pair, parts: int, turns: int) -> Tensor:
    """[parts + turns, 2] float64: tokens, and the sum of their |d|; nats.

    The j-th of n counted tokens of a sequence (j from 0) is in part floor(parts j / n). The last
    turn stands for all that follow, too. Tokens whose d is not finite are left out, but have their
    place.
    """
    d = (batch.log_probs[pair.p].double() - batch.log_probs[pair.q].double()).abs()
    mask = torch.ones_like(d, dtype=torch.bool) if batch.mask is None else batch.mask
    counted = mask.long()
    begins = mask & ~torch.nn.functional.pad(mask[:, :-1], (1, 0))
    if batch.segments is not None:
        segments = batch.segments
        other = torch.nn.functional.pad(segments[1:] != segments[:-1], (1, 0), value=True)
        begins = mask & (begins | other)
    rank = _within(counted, batch) - 1
    turn = _within(begins.long(), batch) - 1
    if batch.segments is None:
        size = counted.sum(1, keepdim=True).expand_as(rank)
    else:
        sizes = counted.new_zeros(batch.n_sequences).index_add_(0, batch.segments, counted[0])
        size = sizes[batch.segments].unsqueeze(0)
    use = mask & d.isfinite()
    part = (parts * rank) // size.clamp(min=1)
    values = torch.stack([torch.ones_like(d), d], -1)[use]
    found = values.new_zeros(parts + turns, 2)
    for index in (part, parts + turn.clamp(max=turns - 1)):
        found.index_add_(0, index[use], values)
    return found


def _within(counts: Tensor, batch: TokenBatch) -> Tensor:
    """[B, T] running sums that begin anew with every sequence."""
    sums = counts.cumsum(1)
    first = batch.starts()
    if first is None or batch.segments is None:
        return sums
    before = (sums - counts)[0]
    return sums - before[first[batch.segments]].unsqueeze(0)
