"""The mailbox in real Ray: what goes in comes out, in other processes too, and it may die."""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from contextlib import suppress

import pytest

from klmonitor.hooks.mailbox import Letter, Mailbox, name_of_job

pytestmark = pytest.mark.verl


@pytest.fixture(scope="module")
def ray():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray

        folder = tempfile.mkdtemp(dir="/tmp")  # a socket's path is short
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            _temp_dir=folder,
            logging_level="ERROR",
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}},
        )
    yield ray
    ray.shutdown()


def started(box, ray):
    """Whether it runs; nobody waits for it when it is made, and a busy machine is slow."""
    for _ in range(12):
        with suppress(ray.exceptions.GetTimeoutError):
            return box.drain() == ([], 0)
    return False


def dies(ask, ray):
    """Whether asking an actor fails in the end."""
    for _ in range(600):
        try:
            ask()
        except ray.exceptions.RayActorError:
            return True
        time.sleep(0.1)
    return False


def test_letters_of_another_process_arrive_and_a_dead_mailbox_says_so(ray):
    box = Mailbox.open({"watch": True, "groups": ["math"]})
    assert started(box, ray)

    @ray.remote(num_cpus=0)
    class Worker:
        def send(self, number):
            found = Mailbox.find()
            begun = time.perf_counter()
            found.put(Letter(f"actor-{number}", 2, bytes(10_000)))
            return found.settings(), time.perf_counter() - begun

        def die(self):
            os._exit(1)

    workers = [Worker.remote() for _ in range(2)]
    answers = ray.get([worker.send.remote(i) for i, worker in enumerate(workers)])
    assert [settings for settings, _ in answers] == [{"watch": True, "groups": ["math"]}] * 2
    print("a letter and a question:", [f"{1e3 * seconds:.1f} ms" for _, seconds in answers])

    with pytest.raises(Exception, match="died"):
        ray.get(workers[0].die.remote())
    workers[0] = Worker.remote()  # restarted: it finds the mailbox again
    ray.get(workers[0].send.remote(0))
    letters, lost = box.drain()
    assert sorted(letter.worker for letter in letters) == ["actor-0", "actor-0", "actor-1"]
    assert (lost, letters[0].part) == (0, bytes(10_000))
    assert Mailbox.open({"watch": False}).settings() == {"watch": False}  # the same actor

    ray.kill(ray.get_actor(name_of_job()))
    assert dies(box.drain, ray), "Ray kills at its own time, but it kills"
    with pytest.raises((ValueError, ray.exceptions.RayActorError)):
        Mailbox.find().put(Letter("actor-0", 1, b""))
