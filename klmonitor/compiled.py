"""Functions of numbers that Numba compiles where it is installed, and Python runs where it is not.

Between two training steps nothing of ours is in any cache: a hundred lines of Python then cost
several times what they cost in a loop, a compiled function hardly more.
"""

from __future__ import annotations

import hashlib
import logging
import marshal
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

logger = logging.getLogger("klmonitor")


class Compiled:
    """A function that is compiled by `prepare`, or else at its first call.

    Args:
        function: of numbers and arrays, in the part of Python that Numba compiles.
        helpers: the functions of ours that it calls, directly or not.
        example: makes arguments of the types that it is always called with.
    """

    _all: ClassVar[list[Compiled]] = []
    _python: ClassVar[bool] = False
    """There is no Numba that can be imported."""

    def __init__(
        self,
        function: Callable[..., Any],
        helpers: Sequence[Callable[..., Any]],
        example: Callable[[], tuple[Any, ...]],
    ) -> None:
        self.function = function
        self._helpers = helpers
        self._example = example
        self._call: Callable[..., Any] | None = None
        self._all.append(self)

    @classmethod
    def prepare(cls) -> None:
        """Compile every function that is not compiled yet; seconds, where none is kept on disk."""
        for one in cls._all:
            if one._call is None:
                one(*one._example())

    def __call__(self, *args: Any) -> Any:
        """What the function returns."""
        if self._call is not None:
            return self._call(*args)
        if Compiled._python:
            self._call = self._plain
            return self._plain(*args)
        try:
            call = self._compile()
            found = run(call, *args)
        except ImportError as error:
            Compiled._python = True
            if not isinstance(error, ModuleNotFoundError):
                self._warn("Numba cannot be imported here", error)
        except Exception as error:  # noqa: BLE001  # what a compiler cannot do, Python can
            self._warn(f"Numba cannot compile {self.function.__name__} here", error)
        else:
            self._call = call
            return found
        self._call = self._plain
        return self._plain(*args)

    def _warn(self, what: str, error: Exception) -> None:
        cause = str(error).strip().partition("\n")[0]
        logger.warning(
            "klmonitor: %s, Python does its work, slower (%s: %s)",
            what,
            type(error).__name__,
            cause,
        )

    def _plain(self, *args: Any) -> Any:
        """The function in Python, where numpy would warn of what compiled code is silent about."""
        with np.errstate(all="ignore"):
            return self.function(*args)

    def _compile(self) -> Callable[..., Any]:
        from numba import njit
        from numba.extending import register_jitable

        for helper in self._helpers:
            register_jitable(helper)
        return keep(self.function, self._helpers, njit)


def run(function: Callable[..., Any], *args: Any) -> Any:
    """What a function that is kept on disk returns, also where the disk is full.

    Numba writes after it has compiled and before it calls, so a second call finds the function.
    """
    try:
        return function(*args)
    except OSError:
        return function(*args)


def keep(
    function: Callable[..., Any],
    helpers: Sequence[Callable[..., Any]],
    jit: Callable[..., Any],
    **options: Any,
) -> Callable[..., Any]:
    """A jitted function that is kept on disk, if there is a place for it.

    Numba looks at the file of the function alone to see whether what it finds there is old, so
    here its name says what was compiled: the function, its helpers, and the constants of theirs.
    """
    name, function.__qualname__ = function.__qualname__, _stored_name(function, helpers)
    try:
        return jit(cache=True, **options)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # no place that can be written to
        return jit(**options)(function)  # type: ignore[no-any-return]
    finally:
        function.__qualname__ = name


def _stored_name(function: Callable[..., Any], helpers: Sequence[Callable[..., Any]]) -> str:
    digest = hashlib.sha256()
    for one in (function, *helpers):
        plain: Any = getattr(one, "py_func", one)  # of what is jitted already
        digest.update(marshal.dumps(plain.__code__))
        for name in plain.__code__.co_names:
            digest.update(_constant(plain.__globals__.get(name)))
    return f"{function.__name__}_{digest.hexdigest()[:16]}"


def _constant(value: Any) -> bytes:
    """What the compiler takes over of a global."""
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, type):
        value = getattr(value, "_fields", None)
    return repr(value).encode() if isinstance(value, (int, float, tuple, np.generic)) else b""
