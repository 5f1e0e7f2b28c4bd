"""A pair's metrics, of which most are computed when one of them is first looked at."""

from __future__ import annotations

from collections.abc import Callable, Collection, ItemsView, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any


class Part:
    """Values that are made together, when somebody first asks for one of them.

    Args:
        names: those that it may have.
        make: gives them. Two threads that ask at once may both call it: they find the same.
    """

    __slots__ = ("_made", "_make", "names")

    def __init__(self, names: Collection[str], make: Callable[[], Mapping[str, float]]) -> None:
        self.names = names
        self._make: Callable[[], Mapping[str, float]] | None = make
        self._made: Mapping[str, float] = {}

    @property
    def values(self) -> Mapping[str, float]:
        """By name."""
        make = self._make
        if make is not None:
            self._made = make()
            self._make = None  # behind it: who finds none finds what was made
        return self._made


class Values(Mapping[str, float]):
    """Metric name -> value: some known, others made by whoever first asks for one of their part.

    Args:
        known: values that are there; they go before those that are made.
        parts: the others, the earlier before the later.
    """

    __slots__ = ("_known", "_parts", "_whole")

    def __init__(self, known: Mapping[str, float], parts: Sequence[Part] = ()) -> None:
        self._known, self._parts = known, tuple(parts)
        self._whole: Mapping[str, float] | None = None

    @property
    def known(self) -> Mapping[str, float]:
        """Those that are there; nothing is made."""
        return self._known

    @property
    def names(self) -> tuple[str, ...]:
        """Those that it may have; nothing is made."""
        names = (self._known, *(part.names for part in self._parts))
        return tuple(dict.fromkeys(chain.from_iterable(names)))

    def __getitem__(self, name: str) -> float:
        found: float | None = self.get(name)
        if found is None:
            raise KeyError(name)
        return found

    def get(self, name: str, default: Any = None) -> Any:
        """The value, or the default where there is none."""
        found = self._known.get(name)
        if found is None:
            for part in self._parts:
                if name in part.names and (found := part.values.get(name)) is not None:
                    return found
        return default if found is None else found

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
        whole = self._whole
        if whole is None:
            first = (self._known, *(part.values for part in self._parts))
            whole = self._whole = dict(chain.from_iterable(one.items() for one in reversed(first)))
        return whole


def joined(values: Mapping[str, float], more: Mapping[str, float], *parts: Part) -> Values:
    """Values with more of them."""
    values = values if isinstance(values, Values) else Values(values)
    return values.joined(more, *parts)


def of_groups(values: Mapping[str, float]) -> list[str]:
    """The names of what is told by group, which is never made later."""
    known = values.known if isinstance(values, Values) else values
    return [name for name in known if name.startswith("group/")]


def possible(values: Mapping[str, float]) -> tuple[str, ...]:
    """The names that values may have; nothing is made for it."""
    return values.names if isinstance(values, Values) else tuple(values)
