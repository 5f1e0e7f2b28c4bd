"""The sink that delivers: one queue, one thread and one process a target."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from weakref import WeakSet

from klmonitor.background import Worker
from klmonitor.notify.courier import Answer, CannotStartError, Courier
from klmonitor.notify.message import make_message
from klmonitor.notify.targets import Target
from klmonitor.report import Alert, Report

CAPACITY = 256
"""Alerts that may wait for one target; more are dropped and counted."""
BACKOFF = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 60.0)
"""Seconds between attempts; a message that failed once more than this many times is lost."""
LONGEST_WAIT = 120.0
"""Seconds that a target may ask us to wait."""
HURRIED = 0.25
"""Seconds between attempts once we are closing."""
FLUSH_SECONDS = 4.0
"""How long `Notifier.close` waits; the run's outputs together have 5 s."""
LAST_SECONDS = 0.5
"""How long a delivery that was cut off may take to be counted."""

logger = logging.getLogger("klmonitor")


class Lane:
    """Delivery to one target, in order.

    Attributes:
        target: the target.
        delivered: messages that it took.
        failed: messages given up after every attempt, or that it refused for good.
    """

    def __init__(
        self, target: Target, run: str, wait: Callable[[threading.Event, float], object]
    ) -> None:
        self.target = target
        self._run = run
        self.delivered = 0
        self.failed = 0
        self.hurry = threading.Event()
        self.courier = Courier(target)
        self._wait = wait
        self._down = False
        self._ended = False
        self._worker = Worker(f"delivery to {target.name}", CAPACITY)

    @property
    def lost(self) -> int:
        """Messages that will not arrive: given up, or never taken into the queue."""
        return self.failed + self._worker.dropped

    def offer(self, alert: Alert) -> bool:
        """Queue an alert; never blocks. False: the queue is full, and it is counted as lost."""
        return self._worker.submit(partial(self._deliver, alert), now=True)

    def flush(self, seconds: float) -> bool:
        """Wait until every message had its turn, `seconds` at most."""
        return self._worker.flush(seconds)

    def close(self, seconds: float) -> None:
        """Deliver what waits, within `seconds`; then `end`."""
        self._worker.close(seconds)

    def end(self) -> None:
        """End the process, whatever it is doing, and say what did not arrive."""
        self.courier.kill()
        self._worker.flush(LAST_SECONDS)
        if self.lost and not self._ended:
            logger.warning(
                "klmonitor: %d alerts did not reach %s; the record has them",
                self.lost,
                self.target.name,
            )
        self._ended = True

    # --- on the worker's thread ------------------------------------------------------------
    def _deliver(self, alert: Alert) -> None:
        message = make_message(alert, self._run)
        for pause in (*BACKOFF, None):
            answer = self.courier.send(message)
            if answer.ok:
                self.delivered += 1
                self._down = False
                return
            self._report(answer)
            if pause is None or not answer.retry:
                break
            self._wait(self.hurry, min(max(pause, answer.after), LONGEST_WAIT))
        self.failed += 1

    def _report(self, answer: Answer) -> None:
        """One line each time that the target stops working."""
        if self._down:
            return
        self._down = True
        then = "it is tried again" if answer.retry else "that alert is lost"
        with suppress(Exception):  # a logging handler of the user's must not end the thread
            logger.warning(
                "klmonitor: no delivery to %s: %s; %s", self.target.name, answer.why, then
            )


def pause(hurry: threading.Event, seconds: float) -> None:
    """Wait until it is time, or time to hurry; never spin."""
    hurry.wait(seconds)
    if hurry.is_set():
        time.sleep(HURRIED)


class Notifier:
    """A sink that delivers each report's alerts to every target that wants them.

    A call costs microseconds and never blocks: it puts messages into queues.

    Args:
        targets: from `klmonitor.notify.parse_targets`.
        run: what to call the run in messages: its directory.
        wait: how to wait between attempts: ``wait(hurry, seconds)``.

    Attributes:
        lanes: the delivery to each target, with its counts.

    Raises:
        ValueError: apprise does not know an address.
        ImportError: apprise is needed and not installed.
        OSError: no process can be started.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        run: str = "",
        *,
        wait: Callable[[threading.Event, float], object] = pause,
    ) -> None:
        self.lanes = [Lane(target, run, wait) for target in targets]
        try:
            self._start()
        except BaseException:
            self.close(0.0)
            raise
        _open_notifiers.add(self)

    def __call__(self, report: Report) -> None:
        """Queue the report's alerts."""
        for alert in report.alerts:
            for lane in self.lanes:
                if lane.target.wants(alert.severity):
                    lane.offer(alert)

    @property
    def dropped(self) -> int:
        """Alerts that will not arrive, all targets together."""
        return sum(lane.lost for lane in self.lanes)

    def flush(self, timeout: float = FLUSH_SECONDS) -> bool:
        """Wait until every alert had its turn, `timeout` seconds at most."""
        deadline = time.monotonic() + timeout
        return all(lane.flush(max(deadline - time.monotonic(), 0.0)) for lane in self.lanes)

    def hurry(self) -> None:
        """Wait no more between attempts: the run is about to end."""
        for lane in self.lanes:
            lane.hurry.set()

    def close(self, timeout: float = FLUSH_SECONDS) -> None:
        """Deliver what waits, within `timeout` seconds for all targets together."""
        self.hurry()
        deadline = time.monotonic() + timeout
        for lane in self.lanes:
            lane.close(max(deadline - time.monotonic(), 0.0))
        for lane in self.lanes:
            lane.end()
        _open_notifiers.discard(self)

    def _start(self) -> None:
        """Start all processes at once, and see whether each can serve its target."""
        if not self.lanes:
            return
        with ThreadPoolExecutor(len(self.lanes)) as pool:
            starts = [pool.submit(lane.courier.start) for lane in self.lanes]
        for lane, start in zip(self.lanes, starts, strict=True):
            error = start.exception()
            if isinstance(error, CannotStartError):
                _refuse(lane.target, str(error))
            elif error is not None:
                raise OSError(
                    f"{lane.target.name}: no process for delivery: {type(error).__name__}; "
                    "leave notify empty where none may be started"
                ) from None


def _refuse(target: Target, error: str) -> None:
    """Raise what the process's error means for the user."""
    if error in ("ImportError", "ModuleNotFoundError"):
        raise ImportError(f'{target.name} needs apprise: pip install "klmonitor[notify]"') from None
    raise ValueError(
        f"{target.name}: apprise does not know such an address: see its documentation for the form"
    ) from None


_open_notifiers: WeakSet[Notifier] = WeakSet()


def _hurry_all() -> None:
    for notifier in tuple(_open_notifiers):
        notifier.hurry()


# Exit handlers run in reverse order, so this one runs before the workers are given their deadline.
atexit.register(_hurry_all)
