"""What a dump has that cannot be read: said once a kind, with its place, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable


class RowError(ValueError):
    """A row, or a file, that is left out.

    Args:
        kind: short, the same for all that are wrong in this way.
        text: what is wrong, with the remedy if there is one.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Problems:
    """Tells the first of each kind when it is met, and how many there were at the end.

    Args:
        tell: takes a line of text.

    Attributes:
        counts: kind -> how many.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.counts: Counter[str] = Counter()
        self._tell = tell

    def add(self, kind: str, where: str, text: str, count: int = 1) -> None:
        """Count one at a place: ``"FILE:LINE"``."""
        if kind not in self.counts:
            self._tell(f"{where}: {text}")
        self.counts[kind] += count

    def left_out(self, error: RowError, where: str) -> None:
        """Count a row, or a file, that is not read."""
        self.add(error.kind, where, f"{error}; left out")

    def lines(self) -> list[str]:
        """A line a kind that came more than once."""
        return [f"{count:,} times: {kind}" for kind, count in self.counts.items() if count > 1]
