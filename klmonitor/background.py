"""Work that may stall, kept off the training thread: one daemon thread behind a bounded queue.

The failure contract: `Worker.submit` neither blocks nor raises. A full queue drops the job and
counts it; a job that raises is counted; each of the two is reported once, with its cause, through
``logging.getLogger("klmonitor").warning``. At interpreter exit all workers together get
`EXIT_SECONDS` to finish; a job that is still stuck then dies with the process.
"""

from __future__ import annotations

import atexit
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable

from klmonitor.boundary import Boundary, HealthLog, say

EXIT_SECONDS = 5.0
"""How long interpreter exit may wait for queued jobs, seconds, all workers together."""
NAP_SECONDS = 0.2
"""How long a job may wait before the thread looks for it. Waking a thread costs its waker more than
all else that a step's jobs ask of it, so it is woken only where jobs come more seldom than this,
somebody waits, or the queue fills."""

KEPT = 4
"""Times as many jobs that must not be lost may wait."""

Job = Callable[[], object]

_open_workers: set[Worker] = set()


class Worker:
    """Runs jobs one after the other, in the order of submission, on a thread of its own.

    A forked child inherits the object but not the thread: there every job is refused.

    Args:
        name: what the thread works for, for messages: ``"the run's record"``.
        capacity: jobs that may wait, besides the one that runs; with ``keep`` `KEPT` times as many.
        idle: called every `NAP_SECONDS` while there is nothing to do.

    Attributes:
        dropped: jobs refused because the queue was full or closed, or never run before `close`
            gave up.
    """

    def __init__(self, name: str, capacity: int, idle: Job | None = None) -> None:
        if capacity < 1:
            raise ValueError(f"capacity={capacity}: a queue needs room for one job at least")
        self.name = name
        self.dropped = 0
        self._capacity = capacity
        self._idle_job = idle
        self._jobs: deque[Job] = deque()
        self._last = -math.inf
        self._running = False
        self._closed = False
        self._stalled = False
        # a job must not end the thread, whatever it raises
        self._boundary = Boundary(
            name, HealthLog(), patience=None, catch=BaseException, done_without="its job is lost"
        )
        self._changed = threading.Condition()
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name=f"klmonitor: {name}", daemon=True)
        self._thread.start()
        _open_workers.add(self)

    @property
    def errors(self) -> int:
        """Jobs that raised."""
        return self._boundary.failures

    def submit(self, job: Job, *, now: bool = False, keep: bool = False) -> bool:
        """Queue a job. Never blocks, never raises.

        Args:
            job: what to run.
            now: do not wait for the thread to look.
            keep: it must not be lost as easily as the others.

        Returns:
            Whether the job was taken; False counts in `dropped`.
        """
        if os.getpid() != self._pid:
            return False
        with self._changed:
            room = self._capacity * (KEPT if keep else 1)
            taken = not self._closed and len(self._jobs) < room
            if taken:
                self._jobs.append(job)
                moment = time.monotonic()
                seldom = moment - self._last >= NAP_SECONDS
                self._last = moment
                if now or seldom or 8 * len(self._jobs) >= self._capacity:
                    self._changed.notify_all()
            else:
                self.dropped += 1
            full = not taken and not self._closed
        if full:
            self._report("cannot keep up or is stalled: dropping, training goes on")
        return taken

    def flush(self, timeout: float) -> bool:
        """Wait until nothing is queued or running.

        Args:
            timeout: seconds to wait at most.

        Returns:
            Whether that was reached in time.
        """
        if os.getpid() != self._pid:
            return True
        with self._changed:
            self._changed.notify_all()
            return self._changed.wait_for(self._idle, timeout)

    def close(self, timeout: float = 5.0) -> bool:
        """Take no more jobs and wait for those that are queued; safe to call again.

        Args:
            timeout: seconds to wait at most. Jobs that have not begun by then are dropped.

        Returns:
            Whether every job had its turn.
        """
        if os.getpid() != self._pid:
            return True
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        done = self.flush(timeout)
        _open_workers.discard(self)
        if not done:
            with self._changed:
                self.dropped += len(self._jobs)
                self._jobs.clear()
            self._report("did not finish in time: giving up the rest")
        return done

    def _idle(self) -> bool:
        return not self._jobs and not self._running

    def _run(self) -> None:
        while True:
            with self._changed:
                self._running = False
                if not self._jobs:
                    self._changed.notify_all()
                if not (self._jobs or self._closed):
                    self._changed.wait(NAP_SECONDS)
                if not self._jobs and self._closed:
                    return
                job = self._jobs.popleft() if self._jobs else self._idle_job
                self._running = bool(job) and job is not self._idle_job
            if job is not None:
                self._boundary(job)
            del job  # the next wait may be long: hold nothing of the caller's meanwhile

    def _report(self, message: str) -> None:
        if not self._stalled:
            self._stalled = True
            say("%s %s", self.name, message)


def flush_all(timeout: float) -> None:
    """Wait until no worker has anything queued or running, at most `timeout` seconds."""
    deadline, workers = time.monotonic() + timeout, tuple(_open_workers)
    for worker in workers:  # all are woken before one is waited for
        worker.flush(0.0)
    for worker in workers:
        worker.flush(max(deadline - time.monotonic(), 0.0))


def _close_all() -> None:
    deadline = time.monotonic() + EXIT_SECONDS
    for worker in tuple(_open_workers):
        worker.close(max(deadline - time.monotonic(), 0.0))


atexit.register(_close_all)
