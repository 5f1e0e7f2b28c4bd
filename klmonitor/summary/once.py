"""Attributes that are computed when they are first looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

R = TypeVar("R")


class once(Generic[R]):  # noqa: N801  # a decorator
    """As `functools.cached_property` of Python 3.12, without its lock.

    Before 3.12 that is one for all objects: what the record's thread computes would hold up
    training's.

    Args:
        make: gives the attribute of an object.
    """

    def __init__(self, make: Callable[[Any], R]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        """The attribute's name."""
        self._name = name

    def __get__(self, of: Any, owner: type | None = None) -> R:
        found: R = self._make(of)
        vars(of)[self._name] = found  # from now on it is found there first
        return found
