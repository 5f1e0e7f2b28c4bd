"""Tiles: rectangles of tokens that stay in cache, the same for [B, T] and for packed input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from klmonitor.batch import TokenBatch

TILE = 32_768
"""Tokens in a tile: five float64 buffers of it stay in a 2 MiB cache."""
WIDTH = 4_096
"""Widest row of a tile: longer rows are cut, so that the search for extremes stays local."""


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

    def row_starts(self, device: torch.device) -> Tensor:
        """Flat index of the first token of each of its rows, int64 [rows]."""
        return torch.arange(self.shape[0], device=device).mul_(self.stride).add_(self.start)


def tiles(batch: TokenBatch) -> Iterator[Tile]:
    """Cut a batch into tiles, in the order of its tokens' flat index."""
    if batch.segments is None:
        yield from _rectangles(*batch.shape)
    else:
        yield from _stretches(batch.shape[1])


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
