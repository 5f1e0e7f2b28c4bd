"""A named Ray actor in which workers leave bytes for their driver, one a job.

It needs no CPU and no GPU, and holds what the workers shall know (`settings`) and parts until the
driver takes them. When it dies it stays dead: then the workers' numbers end, and training goes on.
Ray is imported where it is used: whoever uses this runs on Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

WAIT = 10.0
"""Seconds that a worker or a driver waits for the mailbox at most."""
MOST = 4096
"""Parts that are kept for a driver that does not come; the oldest go first."""


class Letter(NamedTuple):
    """What a worker leaves.

    Attributes:
        worker: its name.
        workers: how many there are that leave something.
        part: as `klmonitor.Collector.take` gives it.
    """

    worker: str
    workers: int
    part: bytes


class Box:
    """What the actor runs."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Empty."""
        self._settings: dict[str, Any] = {}
        self._letters: list[Letter] = []
        self._lost = 0
        self.begin(settings)

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Start for a driver: what is left of another one's is thrown away."""
        self._settings, self._letters, self._lost = dict(settings), [], 0

    def settings(self) -> dict[str, Any]:
        """What the workers shall know."""
        return self._settings

    def tell(self, settings: Mapping[str, Any]) -> None:
        """Something more that the workers shall know."""
        self._settings |= settings

    def put(self, letter: tuple[str, int, bytes]) -> None:
        """Take a worker's part."""
        self._letters.append(Letter(*letter))
        if len(self._letters) > MOST:
            del self._letters[0]
            self._lost += 1

    def drain(self) -> tuple[list[Letter], int]:
        """All parts since the last time, oldest first, and how many were thrown away."""
        found, self._letters = self._letters, []
        lost, self._lost = self._lost, 0
        return found, lost


class Mailbox:
    """A handle of a job's mailbox, of its driver or of one of its workers.

    What fails raises Ray's own errors; callers stand behind a boundary.
    """

    def __init__(self, actor: Any) -> None:
        """Of an actor that runs a `Box`."""
        self._actor = actor

    @classmethod
    def open(cls, settings: Mapping[str, Any]) -> Mailbox:
        """The job's mailbox, made if it is not there, for a driver that begins.

        It is not waited for: on a busy machine an actor may take a minute to start. What fails
        shows when it is asked for something.
        """
        import ray

        made = ray.remote(num_cpus=0, num_gpus=0, max_restarts=0)(Box)
        settings = dict(settings)
        actor = made.options(name=name_of_job(), get_if_exists=True).remote(settings)
        actor.begin.remote(settings)  # one that was there holds another driver's
        return cls(actor)

    @classmethod
    def find(cls) -> Mailbox:
        """The job's mailbox, for a worker.

        Raises:
            ValueError: there is none.
        """
        import ray

        return cls(ray.get_actor(name_of_job()))

    def settings(self) -> dict[str, Any]:
        """What the driver wants the workers to know."""
        return self._ask("settings")  # type: ignore[no-any-return]  # Box.settings, far away

    def tell(self, settings: Mapping[str, Any]) -> None:
        """Say something more to whoever asks for the settings."""
        self._ask("tell", dict(settings))

    def put(self, letter: Letter) -> None:
        """Leave a part, and wait until it is there: the driver comes when the update is over."""
        self._ask("put", tuple(letter))

    def drain(self) -> tuple[list[Letter], int]:
        """All parts since the last time, and how many were lost."""
        return self._ask("drain")  # type: ignore[no-any-return]  # Box.drain, far away

    def _ask(self, what: str, *args: Any) -> Any:
        import ray

        return ray.get(getattr(self._actor, what).remote(*args), timeout=WAIT)


def is_timeout(error: BaseException) -> bool:
    """Whether the mailbox did not answer in time, and may do so later."""
    from ray.exceptions import GetTimeoutError

    return isinstance(error, GetTimeoutError)


def name_of_job() -> str:
    """The actor's name: a Ray job has one mailbox."""
    import ray

    return f"klmonitor-{ray.get_runtime_context().get_job_id()}"
