"""What a sink is, and the boundary that keeps a failing one from the others and from training."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

from klmonitor.boundary import Boundary, HealthLog
from klmonitor.report import Report
from klmonitor.sinks.selection import Metrics, check_metrics, select


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

    Each is called through a boundary of its own. Itself a sink.

    Args:
        sinks: whatever `as_sink` takes.
        metrics: for loggers with ``log_metrics``.
        log: where failures are counted.
    """

    def __init__(
        self, sinks: Iterable[Any], metrics: Metrics = "core", log: HealthLog | None = None
    ) -> None:
        self._log = log or HealthLog()
        self._sinks = [as_sink(sink, metrics) for sink in sinks]
        self._counting = [sink for sink in self._sinks if not isinstance(sink, FunctionSink)]
        self._boundaries = [
            Boundary(f"the sink {type(sink).__name__}", self._log) for sink in self._sinks
        ]

    @property
    def errors(self) -> int:
        """Calls that raised."""
        return sum(boundary.failures for boundary in self._boundaries)

    @property
    def lost(self) -> tuple[int, int]:
        """What sinks took and lost to errors on threads of their own; what they did not try."""
        errors = dropped = 0
        for sink in self._counting:
            errors += _count(sink, "errors")
            dropped += _count(sink, "dropped")
        return errors, dropped

    def __call__(self, report: Report) -> None:
        """Hand it to every sink that works."""
        for sink, boundary in zip(self._sinks, self._boundaries, strict=True):
            boundary(sink, report)

    def close(self) -> None:
        """Close every sink, side by side: one that hangs takes no time from the others."""
        together(
            partial(boundary.always, sink.close)
            for sink, boundary in zip(self._sinks, self._boundaries, strict=True)
        )


def together(
    calls: Iterable[Callable[[], object]], left: Callable[[], float] | None = None
) -> bool:
    """Make calls side by side; where no thread can be had, one after the other.

    Args:
        calls: none of them raises.
        left: seconds that may still be waited for them; None: until they are done.

    Returns:
        Whether all of them are done.
    """
    threads = []
    for call in calls:
        thread = threading.Thread(target=call, daemon=True)
        try:
            thread.start()
        except Exception:  # noqa: BLE001  # no thread, no memory: its turn is now
            call()
        else:
            threads.append(thread)
    for thread in threads:
        thread.join(None if left is None else max(left(), 0.0))
    return not any(thread.is_alive() for thread in threads)


def _count(sink: object, name: str) -> int:
    """What a sink has counted of its own losses; nothing where it does not count."""
    found = getattr(sink, name, 0)
    return found if type(found) is int else 0
