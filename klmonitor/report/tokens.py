"""The tokens that a report names, and sequences of them that are made when looked at."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, overload

T = TypeVar("T")


@dataclass(frozen=True)
class ExtremeToken:
    """One of the tokens with the largest |d| of its tail.

    Attributes:
        pair: the pair's name.
        tail: ``"left"`` (d < 0, where k1 is large) or ``"right"`` (d > 0, where k3 explodes).
        log_ratio: d = log p - log q, nats.
        log_q: log-prob under q, nats.
        log_p: log-prob under p, nats.
        rank: the process that saw it.
        micro_batch: index of the `observe` call within the step.
        sequence: row within that call.
        position: column within the row (offset within the sequence for packed input).
        token_id: vocabulary id, None if unknown.
        prompt_id: as given to `observe`, None if not given.
        text: the decoded token; None unless the adapter decodes and the setting allows it.
        worker: the name of the process that saw it, where it came in a worker's part.
    """

    pair: str
    tail: str
    log_ratio: float
    log_q: float
    log_p: float
    rank: int
    micro_batch: int
    sequence: int
    position: int
    token_id: int | None = None
    prompt_id: int | None = None
    text: str | None = None
    worker: str | None = None

    def with_text(self, text: str | None) -> ExtremeToken:
        """A copy with its text; `dataclasses.replace`, at a tenth of its cost."""
        token = object.__new__(ExtremeToken)
        vars(token).update(vars(self), text=text)
        return token

    @property
    def k1(self) -> float:
        """This token's k1 = -d, nats."""
        return -self.log_ratio

    @property
    def k3(self) -> float:
        """This token's k3 = expm1(d) - d, nats; inf beyond d = 709."""
        try:
            return math.expm1(self.log_ratio) - self.log_ratio
        except OverflowError:
            return math.inf

    @property
    def where(self) -> str:
        """Place of the token, for messages."""
        token = "" if self.token_id is None else f", token id {self.token_id}"
        rank = f"rank {self.rank}, " if self.rank else ""
        rank = rank if self.worker is None else f"worker {self.worker}, "
        return (
            f"{rank}micro-batch {self.micro_batch}, sequence {self.sequence}, "
            f"position {self.position}{token}"
        )


class Later(Sequence[T]):
    """A sequence that is made when it is first looked at: at most steps, by nobody or elsewhere.

    Args:
        make: makes its items.
    """

    def __init__(self, make: Callable[[], Sequence[T]]) -> None:
        self._make = make
        self._made: Sequence[T] | None = None

    @property
    def _items(self) -> Sequence[T]:  # a cached one has one lock for all of them before Python 3.12
        if self._made is None:
            self._made = self._make()
        return self._made

    def __iter__(self) -> Iterator[T]:  # else an IndexError in `make` would be its end
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        return self._items[index]

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # equal to a list of the same items

    def __repr__(self) -> str:
        return repr(tuple(self))


class ExtremeTokens(Later[ExtremeToken]):
    """The extreme tokens of a pair, most extreme first, left tail before right.

    Args:
        make: makes the first so many of each tail, or all.
    """

    def __init__(self, make: Callable[[int | None], Sequence[ExtremeToken]]) -> None:
        super().__init__(partial(make, None))
        self.most = make
