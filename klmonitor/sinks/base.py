"""What a sink is, and the boundary that keeps a failing one from the others and from training."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from klmonitor.report import Report
from klmonitor.sinks.selection import Metrics, check_metrics, select

GIVE_UP = 20
"""Failures in a row after which a sink is left alone."""

logger = logging.getLogger("klmonitor")


@runtime_checkable
class Sink(Protocol):
    """Takes every report, on the training thread: what may stall belongs on a `Worker`."""

    def __call__(self, report: Report) -> None:
        """Take one finished report."""

    def close(self) -> None:
        """Deliver what waits, within seconds, and let go; safe to call again."""


@dataclass(frozen=True)
class FunctionSink:
    """A plain function as a sink."""

    function: Callable[[Report], object]

    def __call__(self, report: Report) -> None:
        """Call it."""
        self.function(report)

    def close(self) -> None:
        """Nothing waits."""


def as_sink(target: Any, metrics: Metrics = "core") -> Sink:
    """Make a sink of what the user has.

    Args:
        target: a sink, a function of a report, or a logger with ``log_metrics(dict, step)``
            (as those of Lightning and accelerate have).
        metrics: what such a logger gets.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(target, Sink) and callable(target):
        return target
    if callable(target):
        return FunctionSink(target)
    log_metrics = getattr(target, "log_metrics", None)
    if callable(log_metrics):
        check_metrics(metrics)
        log: Callable[[Mapping[str, float], int], object] = log_metrics
        return FunctionSink(lambda report: log(select(metrics, report), report.step))
    raise TypeError(
        f"{target!r} is no sink: pass a function of a Report, "
        "or an object with log_metrics(dict, step)"
    )


class FanOut:
    """Hands a report to several sinks, none of which can harm another or the caller.

    A sink that raises is counted and reported once, with the cause; after `GIVE_UP` failures in
    a row it gets no more reports. Itself a sink.

    Args:
        sinks: whatever `as_sink` takes.
        metrics: for loggers with ``log_metrics``.

    Attributes:
        errors: calls that raised.
    """

    def __init__(self, sinks: Iterable[Any], metrics: Metrics = "core") -> None:
        self.errors = 0
        self._sinks = [as_sink(sink, metrics) for sink in sinks]
        self._in_a_row = [0] * len(self._sinks)
        self._reported: set[int] = set()

    def __call__(self, report: Report) -> None:
        """Hand it to every sink that still works."""
        for i, sink in enumerate(self._sinks):
            if self._in_a_row[i] < GIVE_UP:
                failed = self._fails(i, lambda sink=sink: sink(report))  # type: ignore[misc]  # a default argument binds the loop's value
                self._in_a_row[i] = self._in_a_row[i] + 1 if failed else 0

    def close(self) -> None:
        """Close every sink, side by side: one that hangs takes no time from the others."""
        threads = [
            threading.Thread(target=self._fails, args=(i, sink.close), daemon=True)
            for i, sink in enumerate(self._sinks)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _fails(self, i: int, call: Callable[[], None]) -> bool:
        try:
            call()
        except Exception as error:  # noqa: BLE001  # the boundary: a sink must not stop training
            self.errors += 1
            if i not in self._reported:
                self._reported.add(i)
                with suppress(Exception):  # nor must the text of its error
                    logger.warning(
                        "klmonitor: the sink %s failed, training goes on: %s: %s",
                        type(self._sinks[i]).__name__,
                        type(error).__name__,
                        error,
                    )
            return True
        return False
