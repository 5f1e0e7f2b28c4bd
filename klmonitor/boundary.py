"""The one boundary between klmonitor and whatever it runs inside of, and the count of what failed.

Every entry of ours (a hook, a sink, a rule, a job of a thread, a kernel) is called through a
`Boundary`. What raises is caught and counted in a `HealthLog`, told once with its cause, and left
alone for a while if it goes on raising: after `PATIENCE` failures in a row it rests for `REST`
calls, then it is tried again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import ParamSpec, TypeVar

from klmonitor.report import Health

P = ParamSpec("P")
P1 = TypeVar("P1")
P2 = TypeVar("P2")
R = TypeVar("R")

PATIENCE = 5
"""Failures in a row after which a boundary rests."""
REST = 100
"""Calls that a resting boundary leaves out before it tries again."""

logger = logging.getLogger("klmonitor")


class HealthLog:
    """What failed and what was lost so far in this process, for one monitor or collector."""

    def __init__(self) -> None:
        """All is well."""
        self._lock = threading.Lock()
        self._errors = self._dropped = 0
        self._inactive: dict[str, str] = {}

    def failed(self, count: int = 1) -> None:
        """Count failures that were caught."""
        with self._lock:
            self._errors += count

    def lost(self, count: int = 1) -> None:
        """Count what was dropped: rows, alerts, parts."""
        with self._lock:
            self._dropped += count

    def stop(self, what: str, why: str) -> None:
        """Something without which numbers are missing works no more."""
        self._inactive[what] = why

    def resume(self, what: str) -> None:
        """It works again."""
        self._inactive.pop(what, None)

    def __getstate__(self) -> dict[str, object]:
        """All but the lock, so that what holds one can be copied."""
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        """What was counted, and a lock of its own."""
        vars(self).update(state, _lock=threading.Lock())

    def read(self, errors: int = 0, dropped: int = 0) -> Health:
        """As it stands, with what was counted elsewhere."""
        why = "; ".join([f"{what}: {why}" for what, why in list(self._inactive.items())])
        return Health(self._errors + errors, self._dropped + dropped, not why, why)


def inert(text: str) -> str:
    """One line in which nothing is done: control and invisible characters are shown as escapes.

    Also what turns the direction of writing, and halves of characters, which no stream takes.
    """
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


def say(message: str, *values: object) -> None:
    """A warning to the log, whatever the log's handlers do."""
    with suppress(Exception):
        logger.warning("klmonitor: %s", inert(message % values))


class Boundary:
    """Calls functions of ours on behalf of others: nothing that they raise gets through.

    Args:
        name: what is called, for messages.
        log: where failures are counted; None: nowhere, since nothing is missing for them.
        patience: failures in a row after which it rests; None: never, for what others wait for.
        rest: calls left out then.
        vital: whether numbers are missing while it rests.
        strict: raise instead of counting.
        catch: what is caught.
        done_without: what is said to happen instead.

    Attributes:
        resting: whether it leaves calls out at present.
        failures: failures so far.
    """

    def __init__(
        self,
        name: str,
        log: HealthLog | None,
        *,
        patience: int | None = PATIENCE,
        rest: int = REST,
        vital: bool = False,
        strict: bool = False,
        catch: type[BaseException] = Exception,
        done_without: str = "training goes on without it",
    ) -> None:
        self.resting = False
        self.failures = 0
        self.name = name
        self._counted, self._log = log is not None, log or HealthLog()
        self._patience, self._rest = patience, rest
        self._vital, self._strict = vital, strict
        self._catch = catch
        self._done_without = done_without
        self._in_a_row = self._left_out = 0
        self._told = False

    @property
    def failing(self) -> bool:
        """Whether the last call failed, or was left out."""
        return self._in_a_row > 0

    def __call__(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
        """The call's result; None if it failed, or was left out."""
        if self.resting and self._left_out < self._rest:
            self._left_out += 1
            return None
        try:
            result = call(*args, **kwargs)
        except self._catch as error:
            self.caught(error)
            return None
        self._in_a_row = 0
        if self.resting:
            self.resting = False
            self._log.resume(self.name)
        return result

    def always(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
        """As a call, but also while it rests: for what must not be left out."""
        self._left_out = self._rest
        return self(call, *args, **kwargs)

    def caught(self, error: BaseException) -> None:
        """Count a failure, tell the first, and rest after too many in a row.

        Raises:
            BaseException: the error, where that was asked for (`strict`).
        """
        self.failures += 1
        self._in_a_row += 1
        self._log.failed()
        if self._strict:
            raise error
        if not self._told:
            self._told = True
            counted = "; further failures are counted in klmonitor/errors" if self._counted else ""
            say("%s failed, %s (%s)%s", self.name, self._done_without, cause(error), counted)
        self._left_out = 0
        if self._patience is not None and self._in_a_row >= self._patience and not self.resting:
            self.resting = True
            if self._vital:
                self._log.stop(self.name, cause(error))


def each(
    calls: Iterable[tuple[Boundary, Callable[[P1, P2], R], P2]], given: P1
) -> Iterator[R | None]:
    """What each of many quick calls gives, as through its boundary; without a frame for each.

    Args:
        calls: boundary, what is called, and its second argument.
        given: the first.
    """
    for boundary, call, more in calls:
        if boundary._in_a_row or boundary.resting:
            yield boundary(call, given, more)
            continue
        try:
            found = call(given, more)
        except boundary._catch as error:
            boundary.caught(error)
            yield None
        else:
            yield found


def cause(error: BaseException) -> str:
    """An error as one line, whatever its text does."""
    try:
        text = str(error).strip().partition("\n")[0]
    except Exception:  # noqa: BLE001  # a text that cannot be made
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
