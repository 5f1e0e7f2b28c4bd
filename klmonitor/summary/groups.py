"""The groups of a run: which row of a summary a sequence's sums go to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from klmonitor.boundary import say
from klmonitor.summary.batch import TokenBatch

Group: TypeAlias = "str | Sequence[str] | Tensor | np.ndarray[Any, Any] | None"
"""A micro-batch's, or each sequence's: a name, or a place among the declared; None: other."""


class Groups:
    """Names of data sets or environments whose sums are kept apart.

    Args:
        declared: the names, in the order in which numbers name them.

    Attributes:
        names: those of a summary's rows; the row after the last is ``other``.

    Raises:
        ValueError: they cannot be told apart.
    """

    def __init__(self, declared: Sequence[str]) -> None:
        if len(set(declared)) < len(declared) or "other" in declared:
            raise ValueError(f"groups {declared}: give distinct names, 'other' is taken")
        self.names = tuple(sorted(declared))  # a set has another order in every process
        self._declared = {name: index for index, name in enumerate(declared)}
        self._rows = [*(self.names.index(name) for name in declared), len(self.names)]
        self._told: set[str] = set()

    def rows(self, group: Group, batch: TokenBatch) -> int | Tensor:
        """The row of a group, or of each sequence's, [B].

        Raises:
            ValueError: there is not one entry a sequence.
        """
        if group is None or isinstance(group, str):
            return self._rows[self._index_of(group)]
        if isinstance(group, np.ndarray):
            group = torch.from_numpy(group)
        if not isinstance(group, Tensor):
            indices = [self._index_of(one) if isinstance(one, str) else int(one) for one in group]
            group = torch.tensor(indices, dtype=torch.int64, device="cpu")
        if tuple(group.shape) != (batch.n_sequences,):
            raise ValueError(
                f"group has {group.numel()} entries but there are {batch.n_sequences} sequences: "
                "pass one a sequence, or one name for all"
            )
        other = len(self._declared)
        index = group.cpu().long()
        index = torch.where((index >= 0) & (index < other), index, other)
        return torch.tensor(self._rows, dtype=torch.int64, device="cpu")[index]

    def _index_of(self, name: str | None) -> int:
        """Among the groups as declared; one that was not is said once, and counts as ``other``."""
        index = self._declared.get(name or "")
        if index is not None:
            return index
        if name and name != "other" and self._declared and name not in self._told:
            self._told.add(name)
            say("group %r was not declared and counts as 'other': add it to groups=[...]", name)
        return len(self._declared)
