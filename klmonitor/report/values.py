"""A pair's metrics, of which most are computed when one of them is first looked at."""

from __future__ import annotations

from collections.abc import Callable, Collection, ItemsView, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple


class Part(NamedTuple):
    """Values that are made together.

    Attributes:
        names: those that it may have.
        make: gives them.
    """

    names: Collection[str]
    make: Callable[[], Mapping[str, float]]


class Values(Mapping[str, float]):
    """Metric name -> value: some known, others made by whoever first asks for one of their part.

    Args:
        known: values that are there; they go before those that are made.
        parts: the others.
    """

    __slots__ = ("_known", "_parts")

    def __init__(self, known: Mapping[str, float], parts: Sequence[Part] = ()) -> None:
        self._known, self._parts = known, tuple(parts)

    @property
    def names(self) -> tuple[str, ...]:
        """Those that it may have; nothing is made."""
        names = (self._known, *(part.names for part in self._parts))
        return tuple(dict.fromkeys(chain.from_iterable(names)))

    def __getitem__(self, name: str) -> float:
        found = self._known.get(name)
        if found is None:
            for part in self._parts:
                if name in part.names:
                    self._make(part)
            found = self._known[name]
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def items(self) -> ItemsView[str, float]:
        """Names with values; as quick as a dictionary's."""
        return self._all().items()

    def __len__(self) -> int:
        return len(self._all())

    def __repr__(self) -> str:
        return repr(dict(self._all()))

    def __reduce__(self) -> tuple[Any, ...]:
        """What is copied, or sent elsewhere, is a plain table."""
        return dict, (dict(self._all()),)

    def joined(self, more: Mapping[str, float], *parts: Part) -> Values:
        """A copy with more values, or others; nothing is made for it."""
        return Values({**self._known, **more}, (*self._parts, *parts))

    def _all(self) -> Mapping[str, float]:
        for part in self._parts:
            self._make(part)
        return self._known

    def _make(self, part: Part) -> None:
        """Two threads may, of one part: they find the same."""
        self._known = {**part.make(), **self._known}
        self._parts = tuple(one for one in self._parts if one is not part)


def joined(values: Mapping[str, float], more: Mapping[str, float], *parts: Part) -> Values:
    """Values with more of them."""
    values = values if isinstance(values, Values) else Values(values)
    return values.joined(more, *parts)


def possible(values: Mapping[str, float]) -> tuple[str, ...]:
    """The names that values may have; nothing is made for it."""
    return values.names if isinstance(values, Values) else tuple(values)
