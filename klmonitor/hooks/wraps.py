"""Reversible wrapping of a trainer's functions, and the boundary that no error of ours crosses."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

PATIENCE = 3
"""Consecutive failures after which a hook is given up."""

logger = logging.getLogger("klmonitor")


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


class Guard:
    """The boundary of one hook: it catches, counts, warns once, and gives up after `PATIENCE`."""

    def __init__(
        self,
        hook: str,
        count: Callable[[], None],
        strict: bool = False,
        given_up: Callable[[str], None] = lambda _: None,
    ) -> None:
        """A boundary that lets everything through until it fails.

        Args:
            hook: name for the warning.
            count: called at each failure.
            strict: raise instead.
            given_up: called with `hook` once it is given up.
        """
        self.closed = False
        self._hook, self._count, self._strict = hook, count, strict
        self._given_up = given_up
        self._failures = 0
        self._warned = False

    def run(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
        """The call's result; None if it failed, or if the hook has been given up."""
        if self.closed:
            return None
        result = self.always(call, *args, **kwargs)
        if self._failures >= PATIENCE:
            self.closed = True
            self._given_up(self._hook)
        return result

    def always(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
        """As `run`, but never given up: for what other ranks wait for."""
        try:
            result = call(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - the one boundary between us and training
            self._failed(error)
            return None
        self._failures = 0
        return result

    def _failed(self, error: Exception) -> None:
        if self._strict:
            raise error
        self._count()
        self._failures += 1
        if not self._warned:
            self._warned = True
            logger.warning(
                "klmonitor: %s failed and is left out (training goes on): %s: %s",
                self._hook,
                type(error).__name__,
                error,
            )
