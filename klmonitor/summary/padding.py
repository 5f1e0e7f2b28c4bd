"""Stretches of one value at the ends of rows, which are padding that a mask has left in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from klmonitor.summary.fields import CERTAIN, RARE, SHORTEST_CERTAIN, SHORTEST_PADDING
from klmonitor.summary.sequences import Rows


def padding(every: Tensor, mask: Tensor, at: Rows) -> Tensor:
    """Stretches of one value under all policies, in what is counted, at a row's end or start.

    [2, 1]: their tokens, and how many there are.
    """
    last, first = at.last(mask), at.first(mask)
    padded = torch.maximum(
        _stretch(every, mask, at, last, lambda other: at.columns > at.spread(at.last(other))),
        _stretch(every, mask, at, first, lambda other: at.columns < at.spread(at.first(other))),
    )
    return torch.stack([padded, padded > 0]).sum(-1, keepdim=True)


def _stretch(
    every: Tensor, mask: Tensor, at: Rows, end: Tensor, beyond: Callable[[Tensor], Tensor]
) -> Tensor:
    """[S] tokens of the stretch at one end of each row; 0: it is none that is padding.

    Args:
        every: log-probs, [policies, R, C].
        mask: [R, C] what is counted.
        at: where the sequences are.
        end: [S] the column at that end.
        beyond: from the tokens with another value to those between all of them and the end.
    """
    value = at.at(every, end)
    certain = (value.abs() < CERTAIN).all(0)
    same = mask & (every == at.spread(value.to(every.dtype))).all(0)
    run = same & beyond(mask & ~same)
    lengths, alike, counted = at.total(run), at.total(same), at.total(mask)
    others = counted - lengths
    least = torch.where(certain, SHORTEST_CERTAIN, SHORTEST_PADDING)
    padded = (lengths >= least) & (others > 0) & (alike - lengths <= RARE * others)
    return torch.where(padded, lengths, 0.0)
