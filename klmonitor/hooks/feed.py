"""What every capture shares: the way that a micro-batch takes to the monitor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from torch import Tensor

from klmonitor.boundary import Boundary
from klmonitor.hooks.progress import Progress
from klmonitor.hooks.text import TokenText
from klmonitor.monitor import Monitor
from klmonitor.pairs import default_pairs, parse_pairs

Around = Callable[..., Any]
"""Called as ``around(original, *args, **kwargs)`` in the place of a trainer's function."""


@dataclass
class Feed:
    """One trainer's way to its monitor.

    Attributes:
        monitor: what receives the micro-batches.
        guards: boundaries named ``log-probs``, ``generation`` and ``loss``.
        text: keeps the tokens of a step, to name the extreme ones; None if nobody wants that.
        pairs: names of the pairs that are watched; None: those that the policies allow.
        seen: policy -> micro-batches in which its log-probs were observed.
        run: what is known of the run (`Watch.run`).
    """

    monitor: Monitor
    guards: Mapping[str, Boundary]
    text: TokenText | None = None
    pairs: tuple[str, ...] | None = None
    seen: dict[str, int] = field(default_factory=dict)
    run: Progress = field(default_factory=Progress)

    def observe(self, policies: Mapping[str, Tensor], *, phase: str, **layout: Any) -> None:
        """Hand one micro-batch to the monitor, if it holds two policies to compare."""
        for name in policies:
            self.seen[name] = self.seen.get(name, 0) + 1
        if not held_pairs(self.pairs, tuple(policies)):
            return
        if self.text is not None:
            self.text.keep(phase, layout.get("token_ids"))
        given: dict[str, Any] = {**policies, **layout}
        self.monitor.observe(**given, phase=phase)


class Capture(ABC):
    """How the log-probs of one kind of trainer are had."""

    feed: Feed

    @abstractmethod
    def wraps(self) -> dict[str, Around]:
        """Function of the trainer -> what goes around it."""

    @abstractmethod
    def sources(self) -> dict[str, str]:
        """Policy -> where its log-probs come from, for those that are to be had."""

    @abstractmethod
    def missing(self) -> dict[str, str]:
        """Policy -> why its log-probs are not to be had, and how to get them."""

    def absent(self) -> dict[str, str]:
        """Private name that this trainer lacks -> what is done without it."""
        return {}

    def close(self) -> None:  # noqa: B027  # most have nothing
        """Take away what `wraps` does not name."""


@lru_cache(64)
def held_pairs(wanted: tuple[str, ...] | None, policies: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the pairs that some policies make; `wanted` None: the default ones."""
    if wanted is None:
        return tuple(pair.name for pair in default_pairs(policies))
    return tuple(pair.name for pair in parse_pairs(wanted) if {pair.q, pair.p} <= set(policies))


def argument(args: Any, kwargs: Mapping[str, Any], place: int, *names: str) -> Any:
    """An argument of a trainer's function, by name or by place.

    Raises:
        LookupError: it was not given.
    """
    for name in names:
        if name in kwargs:
            return kwargs[name]
    if len(args) > place:
        return args[place]
    raise LookupError(f"no argument {' or '.join(names)} was given")
