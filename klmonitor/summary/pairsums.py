"""The sums of one pair over one batch, tile by tile.

Per tile: d = log p - log q in float64, the features of `fields.MOMENTS`, their inner products along
each row, the histogram's buckets. A row's sums are taken over that row alone, so they do not depend
on which rows came with it: splitting a batch by rows changes a total by float64 rounding only.

A tile with a non-finite or a huge d (rare) is noticed from its extremes and handled apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from klmonitor.pairs import Pair
from klmonitor.summary.batch import TokenBatch
from klmonitor.summary.collected import PairCollection
from klmonitor.summary.fields import (
    BUCKETS,
    CENTRE,
    CLAMP,
    COLUMN,
    CORE_RADIUS,
    HISTOGRAM,
    LOW_EXPONENT,
    MANTISSA_BITS,
    MOMENTS,
    N_TOKEN_COLUMNS,
    WEIGHTED,
)
from klmonitor.summary.tiles import Tile, TileMask, tiles


@dataclass(frozen=True)
class Buffers:
    """Scratch space of one tile, shared by the pairs: memory that stays in cache."""

    floats: Tensor
    bits: Tensor

    @classmethod
    def of(cls, batch: TokenBatch) -> Buffers:
        """Room for the largest tile of a batch."""
        size = max((tile.size for tile in tiles(batch)), default=0)
        return cls(
            torch.empty(4, size, dtype=torch.float64, device=batch.device),
            torch.empty(2, size, dtype=torch.int64, device=batch.device),
        )

    def take(self, tile: Tile) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Four float64 tensors of a tile's shape."""
        a, b, c, d = (buffer[: tile.size].view(tile.shape) for buffer in self.floats)
        return a, b, c, d


@dataclass(frozen=True, kw_only=True)
class PairSums(PairCollection):
    """A pair's collection that grows tile by tile.

    Attributes:
        buffers: scratch space.
        by_row: keep counts by sequence too (sequences of different groups); else pure counts, which
            nobody needs by sequence, go to row 0.
    """

    buffers: Buffers
    by_row: bool

    @classmethod
    def of(
        cls, batch: TokenBatch, pair: Pair, behaviour: str, buffers: Buffers, *, by_row: bool
    ) -> PairSums:
        """Nothing summed yet."""
        like = torch.empty(0, dtype=torch.float64, device=batch.device)
        return cls(
            batch=batch,
            pair=pair,
            behaviour=behaviour,
            rows=like.new_zeros(batch.n_sequences, N_TOKEN_COLUMNS),
            histogram=like.new_zeros(HISTOGRAM),
            buffers=buffers,
            by_row=by_row,
        )

    def add(self, mask: TileMask, log_probs: Mapping[str, Tensor]) -> None:
        """Add a tile.

        Args:
            mask: the tile, and which of its tokens count.
            log_probs: policy -> its log-probs in the tile, `tiles.MASKED` where masked.
        """
        tile = mask.tile
        d, *scratch = self.buffers.take(tile)
        d.copy_(log_probs[self.pair.p]).sub_(log_probs[self.pair.q]).add_(0.0)  # -0 becomes 0
        high, low = d.amax(1), d.amin(1)
        ordinary = _ordinary(high, low)
        valid, core = mask.mask, d
        if not ordinary:
            d, valid, core = self._careful(tile, d, mask.mask)
            high, low = d.amax(1), d.amin(1)
        if ordinary and tile.rows is not None:
            self.rows[tile.rows, COLUMN["core/n"]] += mask.by_row
        else:
            self._sum(tile, "core/n", _near(d, valid))
        total = mask.total if valid is mask.mask or valid is None else valid.count_nonzero()
        self._moments(tile, "core", core, scratch)
        if self.behaviour != self.pair.q:
            log_weight = log_probs[self.pair.q].double() - log_probs[self.behaviour]
            self._weights(tile, d, log_weight, valid)
        around_zero = self._count_buckets(tile, d, total)
        if around_zero > 0:
            self._zeros(tile, d, valid, total)
        self.extremes.add(tile, high, low)

    # --- sums into rows --------------------------------------------------------------------
    def _sum(self, tile: Tile, column: str, product: Tensor) -> None:
        """Add the sum of a tile's values over each sequence."""
        if tile.rows is not None:
            self.rows[tile.rows, COLUMN[column]] += product.sum(1)
        else:
            segments = self._segments(tile)
            self.rows[:, COLUMN[column]].index_add_(0, segments, product.double().reshape(-1))

    def _segments(self, tile: Tile) -> Tensor:
        assert self.batch.segments is not None  # packed input has them
        return self.batch.segments[tile.columns]

    def _count(self, tile: Tile, column: str, which: Tensor) -> None:
        """Count True tokens, without regard to sequences unless `by_row`."""
        if self.by_row:
            self._sum(tile, column, which)
        else:
            self.rows[0, COLUMN[column]] += which.count_nonzero()

    def _zeros(self, tile: Tile, d: Tensor, valid: Tensor | None, total: Tensor) -> None:
        """Count the tokens with d = 0; those that do not count are 0 as well."""
        if self.by_row:
            self._sum(tile, "zero", d == 0 if valid is None else (d == 0) & valid)
        else:
            self.rows[0, COLUMN["zero"]] += total - d.count_nonzero()

    def _moments(self, tile: Tile, part: str, d: Tensor, scratch: list[Tensor]) -> None:
        d2, k3, product = scratch
        torch.mul(d, d, out=d2)
        torch.expm1(d.clamp(max=CLAMP) if part == "tail" else d, out=k3).sub_(d)
        features = {"d": d, "d2": d2, "k3": k3}
        sums = d.new_empty(len(MOMENTS), tile.shape[0])
        for moment, row_sums in zip(MOMENTS, sums, strict=True):
            if moment.left == "abs":
                values = torch.abs(d, out=product)
            elif moment.right == "one":
                values = features[moment.left]
            else:
                values = torch.mul(features[moment.left], features[moment.right], out=product)
            if tile.rows is None:
                self._sum(tile, f"{part}/{moment.name}", values)
            else:
                torch.sum(values, 1, out=row_sums)
        if tile.rows is not None:
            first = COLUMN[f"{part}/{MOMENTS[0].name}"]
            self.rows[tile.rows, first : first + len(MOMENTS)] += sums.T

    def _careful(self, tile: Tile, d: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Take out the non-finite tokens, sum those beyond `CORE_RADIUS` apart.

        Returns:
            d with 0 for excluded tokens, which tokens count, and d with 0 for those summed apart.
        """
        finite, nan = d.isfinite(), d.isnan()
        self._count(tile, "nan", nan)
        self._count(tile, "inf", ~(finite | nan))
        d = torch.where(finite, d, 0.0)
        self._count(tile, "clamped", d > CLAMP)
        far = d.abs() > CORE_RADIUS
        self._sum(tile, "tail/n", far)
        scratch = [torch.empty_like(d) for _ in range(3)]
        self._moments(tile, "tail", torch.where(far, d, 0.0), scratch)
        return d, finite if mask is None else finite & mask, torch.where(far, 0.0, d)

    def _weights(self, tile: Tile, d: Tensor, log_weight: Tensor, valid: Tensor | None) -> None:
        """Importance-weighted sums: w = q(x) / sampler(x), unclamped but for overflow."""
        usable = log_weight.isfinite()
        self._count(tile, "unweighted", ~usable if valid is None else valid & ~usable)
        usable = usable if valid is None else usable & valid
        w = torch.where(usable, log_weight, -torch.inf).clamp_(max=CLAMP).exp_()
        features = {"w": w, "d": d, "k3": torch.expm1(d.clamp(max=CLAMP)).sub_(d)}
        for moment in WEIGHTED:
            one = moment.right == "one"
            self._sum(
                tile, moment.name, w if one else features[moment.left] * features[moment.right]
            )

    def _count_buckets(self, tile: Tile, d: Tensor, total: Tensor) -> Tensor:
        """Count d by its leading bits; tokens that do not count lie at 0 and are taken out.

        Returns:
            How many d are 0 or so small and positive that they share the bucket of 0.
        """
        index, sign = (buffer[: tile.size] for buffer in self.buffers.bits)
        bucket = buckets(d.reshape(-1), index, sign)
        counts = torch.bincount(bucket, minlength=HISTOGRAM)
        counts[CENTRE] -= tile.size - total
        self.histogram.add_(counts)
        return counts[CENTRE]


def _ordinary(high: Tensor, low: Tensor) -> bool:
    """Whether every d of a tile is finite and within `CORE_RADIUS` (nan fails both questions)."""
    return bool(high.max() <= CORE_RADIUS) and bool(low.min() >= -CORE_RADIUS)


def _near(d: Tensor, valid: Tensor | None) -> Tensor:
    """Which tokens count and are not summed apart."""
    near = d.abs() <= CORE_RADIUS
    return near if valid is None else near & valid


def buckets(d: Tensor, index: Tensor | None = None, sign: Tensor | None = None) -> Tensor:
    """Histogram bucket of each d: its leading bits.

    Args:
        d: float64, finite, contiguous, any shape.
        index: int64 of the same shape that the result may be written to.
        sign: another, for scratch.
    """
    bits = d.view(torch.int64)
    lowest = (1023 + LOW_EXPONENT) << MANTISSA_BITS
    index = torch.bitwise_right_shift(bits, 52 - MANTISSA_BITS, out=index)
    index.bitwise_and_((1 << (11 + MANTISSA_BITS)) - 1).sub_(lowest - 1).clamp_(0, BUCKETS + 1)
    sign = torch.bitwise_right_shift(bits, 63, out=sign)  # 0, or -1 for a negative d
    return index.bitwise_xor_(sign).add_(CENTRE)
