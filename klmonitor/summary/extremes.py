"""The exact extreme tokens of each tail, and the most influential sequences.

The pass keeps the largest and smallest d of every tile row. A token among the first sixteen of the
total order lies in one of the sixteen rows whose extremes come first in it, so only those rows are
looked at again. Ties go to the earlier place: rank, micro-batch, sequence, position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from klmonitor.pairs import Pair
from klmonitor.summary.batch import TokenBatch
from klmonitor.summary.tiles import WIDTH, Tile, tiles


@dataclass(frozen=True)
class Place:
    """Where a batch came from: its part of the total order.

    Attributes:
        rank: the process.
        micro_batch: index of the `observe` call within the step.
    """

    rank: int = 0
    micro_batch: int = 0


@dataclass
class RowExtremes:
    """The largest and smallest d of every tile row, collected over a pass.

    Attributes:
        starts: flat index of each row's first token.
        widths: its tokens.
        highs: its largest d; tokens that do not count were read as 0.
        lows: its smallest d.
    """

    starts: list[Tensor] = field(default_factory=list)
    widths: list[Tensor] = field(default_factory=list)
    highs: list[Tensor] = field(default_factory=list)
    lows: list[Tensor] = field(default_factory=list)

    def add(self, tile: Tile, high: Tensor, low: Tensor) -> None:
        """Note the largest and smallest d of a tile's rows, [rows]; finite, masked read as 0."""
        starts = tile.row_starts()
        self.starts.append(starts)
        self.widths.append(torch.full_like(starts, tile.shape[1]))
        self.highs.append(high)
        self.lows.append(low)

    def maxima(self, batch: TokenBatch, pair: Pair) -> Tensor:
        """[2]: the largest d and the largest -d over the tokens that count; -inf: none does.

        A masked token was read as d = 0. That is the answer only where every counted d has one
        sign; else the tokens are read again.
        """
        found = torch.stack([torch.cat(self.highs).amax(), -torch.cat(self.lows).amin()])
        if bool((found > 0).all()):
            return found
        found = torch.full_like(found, -math.inf)
        for tile in tiles(batch):
            q, p = (tile.of(batch.log_probs[name]).double() for name in (pair.q, pair.p))
            d = p - q
            counts = d.isfinite()
            if batch.mask is not None:
                counts = counts & tile.of(batch.mask)
            both = [torch.where(counts, x, -math.inf).amax() for x in (d, -d)]
            torch.maximum(found, torch.stack(both), out=found)
        return found

    def tokens(self, batch: TokenBatch, pair: Pair, place: Place, top: int) -> Tensor:
        """[2 tails, top, TOKEN_FIELDS]: the first tokens of each tail, in order."""
        parts = (self.starts, self.widths, self.highs, self.lows)
        starts, widths, highs, lows = (torch.cat(part) for part in parts)
        if batch.shape[1] > WIDTH:  # tiles did not come in the order of their tokens
            order = starts.argsort()
            starts, widths, highs, lows = (x[order] for x in (starts, widths, highs, lows))
        columns = torch.arange(min(WIDTH, batch.shape[1]), device=batch.device)
        chosen, keys = [], []
        for sign, scores in ((-1.0, -lows), (1.0, highs)):
            blocks = first_largest(scores, top).sort().values
            first = starts[blocks].unsqueeze(1)
            inside = columns < widths[blocks].unsqueeze(1)
            flat = torch.where(inside, first + columns, first).flatten()
            key = sign * _log_ratio(batch, pair, flat)
            key = torch.where(inside.flatten() & (key > 0) & (key < math.inf), key, -math.inf)
            found = first_largest(key, top)
            chosen.append(_fill(flat[found], top, 0))
            keys.append(_fill(key[found], top, -math.inf))
        rows = _rows(batch, pair, place, torch.cat(chosen), torch.cat(keys))
        return rows.view(2, top, -1)


def _fill(values: Tensor, top: int, value: float) -> Tensor:
    """Make a short vector `top` long."""
    missing = top - values.shape[0]
    return values if missing <= 0 else torch.nn.functional.pad(values, (0, missing), value=value)


def _log_ratio(batch: TokenBatch, pair: Pair, flat: Tensor) -> Tensor:
    """D of the tokens at flat indices, float64; nan where masked."""
    row, column = flat // batch.shape[1], flat % batch.shape[1]
    q, p = (batch.log_probs[name][row, column].double() for name in (pair.q, pair.p))
    d = p - q
    return d if batch.mask is None else torch.where(batch.mask[row, column], d, math.nan)


def _rows(batch: TokenBatch, pair: Pair, place: Place, flat: Tensor, key: Tensor) -> Tensor:
    """[n, TOKEN_FIELDS] for the tokens at flat indices; key -inf: no token."""
    row, column = flat // batch.shape[1], flat % batch.shape[1]
    sequence, position = row, column
    first = batch.starts()
    if first is not None and batch.segments is not None:
        sequence = batch.segments[flat]
        position = flat - first[sequence]
    unknown = torch.full_like(row, -1)
    fields = (
        key,
        torch.full_like(row, place.rank),
        torch.full_like(row, place.micro_batch),
        sequence,
        position,
        batch.log_probs[pair.q][row, column],
        batch.log_probs[pair.p][row, column],
        unknown if batch.token_ids is None else batch.token_ids[row, column],
        unknown if batch.prompt_ids is None else batch.prompt_ids[sequence],
    )
    rows = torch.stack([field.double() for field in fields], dim=1)
    nothing = torch.zeros_like(rows[0])
    nothing[0] = -math.inf
    return torch.where(key.unsqueeze(1) > 0, rows, nothing)


def sequence_rows(per_sequence: Tensor, place: Place, top: int) -> Tensor:
    """[top, SEQUENCE_FIELDS]: the sequences of largest |S1|.

    Args:
        per_sequence: [n, 4], the sums t, k1, k2, k3 of each sequence.
        place: where the batch came from.
        top: how many to keep.
    """
    t, k1, _, k3 = per_sequence.unbind(1)
    key = torch.where(t > 0, k1.abs(), -math.inf)
    chosen = _fill(first_largest(key, top), top, 0)
    kept = torch.arange(top, device=key.device) < key.numel()
    here = torch.ones_like(key[chosen])
    fields = (
        torch.where(kept, key[chosen], -math.inf),
        here * place.rank,
        here * place.micro_batch,
        chosen.double(),
        t[chosen],
        k1[chosen],
        k3[chosen],
    )
    return torch.stack(fields, dim=1)


def first_largest(values: Tensor, top: int) -> Tensor:
    """Indices of the `top` largest values, largest first, ties in index order; int64 [<= top].

    nan counts as the largest. Only the ties at the threshold are sorted.
    """
    if values.numel() <= top:
        return values.sort(descending=True, stable=True).indices
    largest = values.topk(top + 1)
    if bool(largest.values[-2] > largest.values[-1]):  # no tie at the threshold
        candidates = largest.indices[:top].sort().values
    else:
        threshold = largest.values[-1]
        above = (values > threshold).nonzero().squeeze(1)
        equal = (values == threshold).nonzero().squeeze(1)[: top - above.numel()]
        candidates = torch.cat([above, equal]).sort().values
    return candidates[values[candidates].sort(descending=True, stable=True).indices]
