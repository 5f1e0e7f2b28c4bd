import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator

import pytest

from klmonitor import background
from klmonitor.background import Worker
from tests.helpers.warnings import warnings_of


@pytest.fixture
def stall() -> Iterator[threading.Event]:
    """A job that waits for this event is stalled until the test ends."""
    event = threading.Event()
    yield event
    event.set()


def busy(worker: Worker, stall: threading.Event) -> None:
    """Submit a stalled job and return once it runs."""
    running = threading.Event()

    def job() -> None:
        running.set()
        stall.wait()

    assert worker.submit(job)
    assert running.wait(60)


def test_jobs_run_in_order_on_another_thread() -> None:
    worker, seen, threads = Worker("a test", 100), [], set()

    def job(i: int) -> None:
        seen.append(i)
        threads.add(threading.get_ident())

    assert all(worker.submit(lambda i=i: job(i)) for i in range(100))
    assert worker.flush(60)
    assert seen == list(range(100))
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    assert worker.close()
    assert (worker.dropped, worker.errors) == (0, 0)


@pytest.mark.parametrize("why", ["urgent", "the queue fills", "somebody waits", "the first"])
def test_the_thread_is_woken_where_a_job_should_not_wait(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "NAP_SECONDS", 3600.0)
    worker, ran = Worker("a test", 4), threading.Event()
    if why != "the first":
        worker.submit(lambda: None)
        assert worker.flush(60)
    worker.submit(ran.set, now=why == "urgent")
    if why == "the queue fills":
        worker.submit(lambda: None)
    if why == "somebody waits":
        assert worker.flush(60)
    assert ran.wait(60)
    worker.close()


def test_a_job_that_nobody_waits_for_runs_soon() -> None:
    worker, ran = Worker("a test", 100), [threading.Event() for _ in range(3)]
    for one in ran:
        worker.submit(one.set)
    assert all(one.wait(60) for one in ran)
    worker.close()


def test_a_queue_needs_room() -> None:
    with pytest.raises(ValueError, match="capacity=0"):
        Worker("a test", 0)


def test_a_full_queue_drops_counts_and_warns_once(
    stall: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    worker, ran = Worker("the test's queue", 3), []
    busy(worker, stall)
    taken = [worker.submit(lambda i=i: ran.append(i)) for i in range(8)]
    assert taken == [True] * 3 + [False] * 5
    assert worker.dropped == 5
    assert not worker.flush(0.01)
    [message] = warnings_of(caplog)
    assert "the test's queue" in message
    stall.set()
    assert worker.flush(60)
    assert ran == [0, 1, 2]
    assert worker.submit(lambda: ran.append(3))
    assert worker.close(60)
    assert ran == [0, 1, 2, 3]


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize("error", [OSError("disk on fire"), SystemExit(3), UnprintableError()])
def test_a_failing_job_is_counted_and_reported_once(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    worker, ran = Worker("a test", 10), []

    def fail() -> None:
        raise error

    for _ in range(3):
        worker.submit(fail)
    worker.submit(lambda: ran.append("later"))
    assert worker.close(60)
    assert ran == ["later"]
    assert worker.errors == 3
    messages = warnings_of(caplog)
    if not isinstance(error, UnprintableError):
        assert len(messages) == 1
        assert f"{type(error).__name__}: {error}" in messages[0]


def test_close_gives_up_on_a_stalled_job(
    stall: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    worker, ran = Worker("a test", 10), []
    busy(worker, stall)
    worker.submit(lambda: ran.append("never"))
    assert not worker.close(0.01)
    assert not worker.close(0.01)
    assert worker.dropped == 1
    assert len(warnings_of(caplog)) == 1
    assert not worker.submit(lambda: ran.append("closed"))
    stall.set()
    assert worker.flush(60)
    assert ran == []


def test_closing_twice_is_harmless_and_a_closed_worker_takes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker("a test", 1)
    assert worker.close(60)
    assert worker.close(60)
    assert not worker.submit(lambda: None)
    assert worker.dropped == 1
    assert warnings_of(caplog) == []


def test_jobs_of_many_threads_are_run_or_counted() -> None:
    worker, ran = Worker("a test", 5), []

    def submit_many() -> None:
        for _ in range(200):
            worker.submit(lambda: ran.append(1))

    threads = [threading.Thread(target=submit_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert worker.close(60)
    assert len(ran) + worker.dropped == 800


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_refuses_jobs_and_does_not_wait() -> None:
    worker = Worker("a test", 5)
    worker.flush(60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)  # what a child of fork sees: another pid
        assert not worker.submit(lambda: None)
        assert worker.flush(0)
        assert worker.close(0)
    assert worker.submit(lambda: None)
    assert worker.close(60)


def run_script(body: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(body)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_exit_is_not_held_by_stalled_jobs() -> None:
    done = run_script(
        """
        import threading
        from klmonitor import background
        background.EXIT_SECONDS = 0.2
        forever = threading.Event()
        for name in ("one", "two"):
            worker = background.Worker(name, 10)
            worker.submit(forever.wait)
            worker.submit(lambda: None)
        """
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert done.stderr.count("did not finish in time") == 2


def test_exit_after_a_close_that_gave_up_does_not_wait_again() -> None:
    done = run_script(
        """
        import threading
        from klmonitor.background import Worker
        worker = Worker("one", 10)
        worker.submit(threading.Event().wait)
        assert not worker.close(0.1)
        """
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("did not finish in time") == 1


def test_exit_waits_for_jobs_that_do_run() -> None:
    done = run_script(
        """
        import time
        from klmonitor.background import Worker
        worker = Worker("one", 10)
        worker.submit(lambda: time.sleep(0.3))
        worker.submit(lambda: print("written", flush=True))
        """
    )
    assert done.returncode == 0
    assert done.stdout == "written\n"
    assert done.stderr == ""


def test_all_workers_share_one_deadline_at_exit(
    stall: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two stalled workers and a healthy one: the healthy one loses nothing."""
    monkeypatch.setattr(background, "EXIT_SECONDS", 0.05)
    stalled, ran = [Worker(f"stalled {i}", 5) for i in range(2)], []
    for worker in stalled:
        busy(worker, stall)
    healthy = Worker("healthy", 5)
    healthy.submit(lambda: ran.append("row"))
    assert healthy.flush(60)
    waits: list[float] = []
    real = Worker.close
    monkeypatch.setattr(Worker, "close", lambda w, t=5.0: (waits.append(t), real(w, t))[1])
    background._close_all()
    assert len(waits) >= 3
    assert min(waits) < background.EXIT_SECONDS / 2
    assert ran == ["row"]
