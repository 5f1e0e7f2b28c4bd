"""Sums, maxima and places by sequence, of tokens whose rows are sequences or that are packed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from klmonitor.summary.batch import TokenBatch


@dataclass(frozen=True)
class Rows:
    """The sequences of the tokens that were taken, [R, C].

    Attributes:
        count: sequences, S.
        width: C.
        device: where they are.
        segments: int64 [C], the sequence of each token of packed input (R = 1); None: S = R.
    """

    count: int
    width: int
    device: torch.device
    segments: Tensor | None

    @classmethod
    def of(cls, batch: TokenBatch, rows: int, columns: int) -> Rows:
        """Of the first rows (or packed columns) of a batch."""
        if batch.segments is None:
            return cls(rows, columns, batch.device, None)
        return cls(batch.n_sequences, columns, batch.device, batch.segments[:columns])

    @cached_property
    def columns(self) -> Tensor:
        """int64 [C], 0 to C - 1."""
        return torch.arange(self.width, device=self.device)

    def total(self, x: Tensor) -> Tensor:
        """Sums over each sequence, [..., R, C] -> [..., S] float64, in an order that is fixed."""
        if self.segments is None:
            return x.sum(-1, dtype=torch.float64)
        before, some = self.edges
        upto = x.cumsum(-1, dtype=torch.float64).squeeze(-2)[..., before] * some
        return upto[..., 1:] - upto[..., :-1]

    @cached_property
    def edges(self) -> tuple[Tensor, Tensor]:
        """[S + 1] the last column before each packed sequence and before the end; if any is."""
        assert self.segments is not None  # who asks has looked
        numbers = torch.arange(self.count + 1, device=self.segments.device)
        before = torch.searchsorted(self.segments, numbers) - 1
        return before.clamp(min=0), before >= 0

    def most(self, x: Tensor) -> Tensor:
        """Largest of each sequence, but at least -1: [..., R, C] -> [..., S]."""
        if self.segments is None:
            return x.amax(-1).clamp(min=-1)
        x = x.squeeze(-2)
        found = x.new_full((*x.shape[:-1], self.count), -1)
        return found.scatter_reduce_(-1, self.segments.expand_as(x), x, "amax")

    def last(self, which: Tensor) -> Tensor:
        """The last column of each sequence that is marked: bool [..., R, C] -> [..., S], or -1."""
        if self.segments is None:
            back = which.view(torch.uint8).flip(-1).argmax(-1)
            return torch.where(which.any(-1), self.width - 1 - back, -1)
        return self.most(torch.where(which, self.columns, -1))

    def first(self, which: Tensor) -> Tensor:
        """And the first."""
        if self.segments is None:
            return torch.where(which.any(-1), which.view(torch.uint8).argmax(-1), -1)
        end = self.width - 1
        back = self.most(torch.where(which, end - self.columns, -1))
        return torch.where(back >= 0, end - back, -1)

    def ends(self, counts: Tensor, x: Tensor) -> Tensor:
        """Values at the first and at the last token that counts; 0 where none does.

        Args:
            counts: float [1, R, C], 1 where a token counts, else 0.
            x: float [1, R, C], 0 where it does not.

        Returns:
            [2, 1, S] float64.
        """
        if self.segments is None:
            forth = torch.stack([counts, x])
            both = torch.stack([forth, forth.flip(-1)])
            places = both[:, 0].argmax(-1, keepdim=True)
            return both[:, 1].gather(-1, places).squeeze(-1).double()
        which = counts > 0
        return torch.stack([self.at(x, self.first(which)), self.at(x, self.last(which))])

    def extent(self, x: Tensor) -> Tensor:
        """[2, ..., S] the smallest and the largest of each sequence's values and 0."""
        if self.segments is None:
            return torch.stack(x.aminmax(dim=-1))
        x = x.squeeze(-2)
        zero, segments = x.new_zeros((*x.shape[:-1], self.count)), self.segments.expand_as(x)
        return torch.stack([zero.scatter_reduce(-1, segments, x, f"a{m}") for m in ("min", "max")])

    def products(self, x: Tensor) -> Tensor:
        """[S, 2, M, M] sums over each sequence of x_i(t) x_j(t), and of x_i(t) x_j(t - 1).

        Args:
            x: float64 [M, R, C], 0 where a token does not count.
        """
        if self.segments is None:
            x = x.transpose(0, 1)
            return torch.stack((x @ x.mT, x[..., 1:] @ x[..., :-1].mT), 1)
        together = self.segments[1:] == self.segments[:-1]
        before = torch.nn.functional.pad(x[..., :-1] * together, (1, 0))
        both = torch.stack((x, before)).unsqueeze(1)  # [2, 1, M, R, C]
        return self.total(x.unsqueeze(1) * both).permute(3, 0, 1, 2)

    def spread(self, y: Tensor) -> Tensor:
        """What each token has of its sequence: [..., S] -> [..., R, C] or what broadcasts to it."""
        if self.segments is None:
            return y.unsqueeze(-1)
        return y[..., self.segments].unsqueeze(-2)

    def at(self, x: Tensor, place: Tensor) -> Tensor:
        """[..., S] float64, the value at a column of each sequence's row; 0 at a negative place."""
        place, x = place.expand(*x.shape[:-2], self.count), x.expand(*x.shape)
        if self.segments is None:
            found = x.gather(-1, place.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        else:
            found = x.squeeze(-2).gather(-1, place.clamp(min=0))
        return torch.where(place >= 0, found.double(), 0.0)


ROOM = 2
"""Times the tokens that rows may take, with what fills them up."""


def unpacked(segments: Tensor) -> tuple[Rows, Tensor, Tensor] | None:
    """Packed sequences as rows, whose sums cost a third; None where that is not worth it.

    Where lengths differ much rows are mostly empty.

    Args:
        segments: int64 [C], the sequence of each token, growing; C > 0.

    Returns:
        The rows; int64 [S, L] which token is where; bool [S, L] whether one is.
    """
    lengths = segments.bincount()
    longest = int(lengths.max())
    if len(lengths) * longest > ROOM * len(segments):
        return None
    columns = torch.arange(longest, device="cpu")
    inside = columns < lengths.unsqueeze(-1)
    first = lengths.cumsum(0) - lengths
    places = (first.unsqueeze(-1) + columns).clamp_(max=len(segments) - 1)
    return Rows(len(lengths), longest, segments.device, None), places, inside
