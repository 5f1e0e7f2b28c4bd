"""Tiles: rectangles of tokens that stay in cache, the same for [B, T] and for packed input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from klmonitor.summary.batch import TokenBatch

TILE = 131_072
"""Tokens in a tile: a few float64 buffers of it stay in the shared cache, and the calls are few."""
WIDTH = 4_096
"""Widest row of a tile: longer rows are cut, so that the search for extremes stays local."""


MASKED = -1.0
"""What a masked log-prob is read as: under both policies, so that d = 0, and unlike a zero."""
INTEGER = {8: torch.int64, 4: torch.int32, 2: torch.int16}
"""Integer dtype by the size of a float, bytes."""


@dataclass(frozen=True)
class Tile:
    """A rectangle of tokens.

    Attributes:
        start: flat index (row * T + column) of its first token.
        stride: flat distance between its rows.
        rows: the rows of the batch that it covers; None for packed input, whose only row is cut
            into rows of `WIDTH` without regard to sequences.
        columns: the columns of the batch that it covers.
        shape: rows and columns of the tile.
    """

    start: int
    stride: int
    rows: slice | None
    columns: slice
    shape: tuple[int, int]

    @property
    def size(self) -> int:
        """Tokens in the tile, masked ones included."""
        return self.shape[0] * self.shape[1]

    def of(self, tensor: Tensor) -> Tensor:
        """The tile's part of a [B, T] tensor, a view."""
        if self.rows is not None:
            return tensor[self.rows, self.columns]
        return tensor[0, self.columns].reshape(self.shape)

    def row_starts(self) -> Tensor:
        """Flat index of the first token of each of its rows, int64 [rows]."""
        return torch.arange(self.shape[0], device="cpu").mul_(self.stride).add_(self.start)


@dataclass(frozen=True)
class TileMask:
    """Which tokens of a tile count, with what several pairs ask of it.

    Attributes:
        tile: the tile.
        mask: bool [rows, columns]; None: all count.
        bits: integer [rows, columns] with all bits set where a token counts; None with `mask`.
        fill: the bits of `MASKED` where it does not count, else 0; None with `mask`.
        dtype: of the log-probs that `fill` is made for; None with `mask`.
        by_row: counted tokens of each row, [rows].
        total: counted tokens, a scalar tensor.
    """

    tile: Tile
    mask: Tensor | None
    bits: Tensor | None
    fill: Tensor | None
    dtype: torch.dtype | None
    by_row: Tensor
    total: Tensor

    @classmethod
    def of(cls, tile: Tile, batch: TokenBatch) -> TileMask:
        """The mask of one tile of a batch."""
        if batch.mask is None:
            by_row = torch.full((tile.shape[0],), tile.shape[1], device=batch.device)
            return cls(tile, None, None, None, None, by_row, by_row.sum())
        mask = tile.of(batch.mask)
        log_probs = next(iter(batch.log_probs.values()))
        bits = mask.view(torch.int8).to(INTEGER[log_probs.element_size()]).neg_()
        filled = torch.full((), MASKED, dtype=log_probs.dtype, device="cpu")
        masked = filled.view(bits.dtype).item()
        fill = torch.bitwise_not(bits).bitwise_and_(masked)
        by_row = mask.sum(1)
        return cls(tile, mask, bits, fill, log_probs.dtype, by_row, by_row.sum())

    def apply(self, x: Tensor) -> Tensor:
        """X with `MASKED` where masked, whatever lies there; by bits, which is cheaper."""
        if self.mask is None or self.bits is None or self.fill is None:
            return x
        if x.dtype != self.dtype:
            return torch.where(self.mask, x, MASKED)
        return x.view(self.bits.dtype).bitwise_and(self.bits).bitwise_or_(self.fill).view(x.dtype)


def tiles(batch: TokenBatch) -> Iterator[Tile]:
    """Cut a batch into tiles, in the order of its tokens' flat index."""
    if batch.segments is None:
        yield from _rectangles(*batch.shape)
    else:
        yield from _stretches(batch.shape[1])


def first_shape(batch: TokenBatch) -> tuple[int, int]:
    """Rows and columns of a batch that its first tile covers."""
    rows, columns = batch.shape
    if batch.segments is None:
        width = min(columns, WIDTH)
        return min(rows, max(1, TILE // max(width, 1))), width
    tokens = min(columns, TILE)
    return 1, tokens // WIDTH * WIDTH or tokens


def _rectangles(n_rows: int, n_columns: int) -> Iterator[Tile]:
    width = min(n_columns, WIDTH)
    height = max(1, TILE // max(width, 1))
    for top in range(0, n_rows, height):
        rows = slice(top, min(top + height, n_rows))
        for left in range(0, n_columns, max(width, 1)):
            columns = slice(left, min(left + width, n_columns))
            shape = (rows.stop - rows.start, columns.stop - columns.start)
            yield Tile(top * n_columns + left, n_columns, rows, columns, shape)


def _stretches(n_tokens: int) -> Iterator[Tile]:
    for start in range(0, n_tokens, TILE):
        end = min(start + TILE, n_tokens)
        whole = start + (end - start) // WIDTH * WIDTH
        for a, b in ((start, whole), (whole, end)):
            if b > a:
                width = min(WIDTH, b - a)
                yield Tile(a, width, None, slice(a, b), ((b - a) // width, width))
