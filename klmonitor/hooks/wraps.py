"""Reversible wrapping of an object's functions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


class Wrap:
    """A bound function of an object, replaced on that instance alone by one that calls it.

    Attributes:
        original: what the instance had before.
    """

    def __init__(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        """Replace ``owner.name``.

        Args:
            owner: the object; its class stays as it is.
            name: the attribute.
            around: called as ``around(original, *args, **kwargs)``.
        """
        self.original: Callable[..., Any] = getattr(owner, name)
        self._owner, self._name = owner, name
        self._was_own = name in vars(owner)
        self._active = True

        @functools.wraps(self.original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if self._active:
                return around(self.original, *args, **kwargs)
            return self.original(*args, **kwargs)

        self._wrapper = wrapper
        setattr(owner, name, wrapper)

    def undo(self) -> None:
        """Restore the instance; where somebody has wrapped our wrapper, make it transparent."""
        self._active = False
        if vars(self._owner).get(self._name) is not self._wrapper:
            return
        if self._was_own:
            setattr(self._owner, self._name, self.original)
        else:
            delattr(self._owner, self._name)
