"""What one trainer's dump looks like."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]
"""Column -> value: one sequence's, or those of several."""

POLICIES = ("policy", "old", "rollout", "ref")
ROLES = (*POLICIES, "mask", "entropy", "tokens", "prompt", "group", "step")
"""What a column may be, for the user."""
REAL = "real"
"""And for a layout: 1 where ``tokens`` are no padding."""


def as_it_is(row: Row) -> Iterable[Row]:
    """A record that is a row already."""
    return (row,)


@dataclass(frozen=True)
class Layout:
    """Which column is what.

    Attributes:
        name: for ``--layout``.
        title: whose it is, and which files.
        columns: role (one of `ROLES`, or `REAL`) -> columns; several are alternatives, the first
            that a row has counts, and of the mask all that it has, multiplied.
        required: columns by which a record is known.
        path: finds the step in a file's path, as its first group; None: it is in the rows.
        first: index of the first value of a row that belongs to a sampled token.
        prompts_from_tokens: the tokens before the first that counts are the prompt: completions of
            the same are not independent.
        rows: the rows of what a file holds in one piece.
        named: roles whose columns the user has named: a row without them is wrong.
    """

    name: str
    title: str
    columns: Mapping[str, tuple[str, ...]]
    required: frozenset[str] = frozenset()
    path: re.Pattern[str] | None = None
    first: int = 0
    prompts_from_tokens: bool = False
    rows: Callable[[Row], Iterable[Row]] = as_it_is
    named: frozenset[str] = field(default=frozenset())

    def step_of(self, path: str) -> int | None:
        """The step that a file's path names."""
        found = self.path.search(path) if self.path is not None else None
        return int(found.group(1)) if found else None

    def knows(self, record: Row) -> bool:
        """Whether a record is of this layout."""
        return bool(self.required) and self.required <= record.keys()

    def said(self, row: Row) -> str:
        """Which column is which policy, for people."""
        parts = [f"{names[0]} is {role}" for role, names in self._there(row).items()]
        mask = self._there(row, ("mask",)).get("mask", ())
        counted = f"tokens count where {' and '.join(mask)}" if mask else "every token counts"
        return f"{', '.join(parts)}; {counted}"

    def _there(self, row: Row, roles: Iterable[str] = POLICIES) -> dict[str, tuple[str, ...]]:
        found = {role: tuple(n for n in self.columns.get(role, ()) if n in row) for role in roles}
        return {role: names for role, names in found.items() if names}
