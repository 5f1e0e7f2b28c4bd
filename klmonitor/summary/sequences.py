"""Sums, maxima and places by sequence, of tokens whose rows are sequences or that are packed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The sequences of the tokens that were taken, [R, C].

    Attributes:
        count: sequences, S.
        columns: int64 [C], 0 to C - 1.
        segments: int64 [C], the sequence of each token of packed input (R = 1); None: S = R.
    """

    count: int
    columns: Tensor
    segments: Tensor | None

    def total(self, x: Tensor) -> Tensor:
        """Sums over each sequence, [..., R, C] -> [..., S] float64, in an order that is fixed."""
        if self.segments is None:
            return x.sum(-1).double()
        upto = torch.nn.functional.pad(x.double().cumsum(-1), (1, 0)).squeeze(-2)
        edges = torch.searchsorted(
            self.segments, torch.arange(self.count + 1, device=self.segments.device)
        )
        return upto[..., edges[1:]] - upto[..., edges[:-1]]

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
            return torch.where(which.any(-1), self.columns.numel() - 1 - back, -1)
        return self.most(torch.where(which, self.columns, -1))

    def first(self, which: Tensor) -> Tensor:
        """And the first."""
        if self.segments is None:
            return torch.where(which.any(-1), which.view(torch.uint8).argmax(-1), -1)
        end = self.columns.numel() - 1
        back = self.most(torch.where(which, end - self.columns, -1))
        return torch.where(back >= 0, end - back, -1)

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

    def together(self) -> Tensor | None:
        """[C - 1] whether a token and the next are of one sequence; None: always."""
        return None if self.segments is None else self.segments[1:] == self.segments[:-1]
