"""What stands at a place where tensors pass, and keeps them while it listens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

Heard = TypeVar("Heard")


class Listener(Generic[Heard]):
    """Listens on demand.

    Attributes:
        kept: what was heard since `listen`.
    """

    _off: Callable[[], Any]
    """Takes the hook off, which whoever derives from this has put on."""

    def __init__(self) -> None:
        """Nothing heard."""
        self.kept: list[Heard] = []
        self._listening = False

    def listen(self) -> None:
        """Start from nothing."""
        self.kept.clear()
        self._listening = True

    def stop(self) -> None:
        """Hear nothing more; what was kept stays until `forget`."""
        self._listening = False

    def forget(self) -> None:
        """Drop the tensors."""
        self.kept.clear()

    def close(self) -> None:
        """Take the hook off."""
        self._off()
        self.kept.clear()
