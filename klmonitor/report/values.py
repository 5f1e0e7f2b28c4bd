"""A pair's metrics, of which most are computed when one of them is first looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any


class Values(Mapping[str, float]):
    """Metric name -> value: some known, the others made all at once by whoever first asks for one.

    Args:
        known: values that are there; they go before those that are made.
        names: of the others, as keys.
        make: gives them.
    """

    __slots__ = ("_known", "_make", "_names")

    def __init__(
        self,
        known: Mapping[str, float],
        names: Mapping[str, None],
        make: Callable[[], Mapping[str, float]],
    ) -> None:
        self._known, self._names = known, names
        self._make: Callable[[], Mapping[str, float]] | None = make

    @property
    def whole(self) -> bool:
        """Whether the others were made."""
        return self._make is None

    def __getitem__(self, name: str) -> float:
        found = self._known.get(name)
        if found is None:
            if name not in self._names:
                raise KeyError(name)
            found = self._all()[name]
        return found

    def __iter__(self) -> Iterator[str]:  # names alone: nothing is made
        return iter(dict.fromkeys((*self._known, *self._names)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return repr(dict(self))

    def __reduce__(self) -> tuple[Any, ...]:
        """What is copied, or sent elsewhere, is a plain table."""
        return dict, (dict(self),)

    def joined(self, more: Mapping[str, float]) -> Values:
        """A copy with more values, or others; nothing is made for it."""
        known = {**self._known, **more}
        return Values(known, self._names, self._make or dict)

    def _all(self) -> Mapping[str, float]:
        make = self._make
        if make is not None:  # two threads may: they find the same
            self._known, self._make = {**make(), **self._known}, None
        return self._known


def joined(values: Mapping[str, float], more: Mapping[str, float]) -> Mapping[str, float]:
    """Values with more of them."""
    return values.joined(more) if isinstance(values, Values) else {**values, **more}
