"""Our end of the process that talks to a target: start it, ask it, kill it when it hangs."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klmonitor.notify.message import Message
from klmonitor.notify.targets import Target

START_SECONDS = 30.0
"""How long a process may take to start, on a machine that is busy."""
CHILD = Path(__file__).with_name("child.py")


@dataclass(frozen=True)
class Answer:
    """What came of one attempt.

    Attributes:
        ok: whether the target took the message.
        retry: whether another attempt makes sense.
        why: what went wrong, without any part of the address.
        after: seconds that the target asks us to wait.
    """

    ok: bool
    retry: bool = True
    why: str = ""
    after: float = 0.0


class CannotStartError(Exception):
    """The process cannot serve this target; the text is the type of its error."""


class Courier:
    """Sends messages to one target, through a process that is killed when it takes too long.

    Every method but `kill` is for one thread at a time.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the process, so that a wrong address is known now.

        Raises:
            CannotStartError: it said that it cannot work.
            OSError: there is no process to be had.
        """
        process = self._spawn()
        setup = {
            "path": sys.path,
            "service": self._target.service,
            "address": self._target.address.reveal(),
            "timeout": self._target.timeout,
        }
        said = self._ask(process, setup, START_SECONDS)
        if said is not None and "error" in said:
            self._end(process)
            raise CannotStartError(said["error"])

    def send(self, message: Message) -> Answer:
        """One attempt, `Target.timeout` seconds at most. Never raises."""
        if self._killed:
            return Answer(False, retry=False, why="it is closed")
        try:
            process = self._process
            if process is None or process.poll() is not None:
                self.start()
                process = self._process
            assert process is not None
            said = self._ask(process, message, self._target.timeout)
            if said is None:
                return Answer(False, retry=not self._killed, why="no answer in time")
            return Answer(**said)
        except Exception as error:  # noqa: BLE001  # its text may hold the address
            return Answer(False, why=type(error).__name__)

    def kill(self) -> None:
        """End the process at once and start no other; from any thread."""
        with self._lock:
            self._killed = True
            process = self._process
        if process is not None:
            self._end(process)

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._killed:
                raise OSError("closed")
            if self._process is not None:
                self._end(self._process)
            # -I: nothing of the working directory is imported; our own sys.path follows by pipe.
            # A session of its own: an interrupt at the terminal is not for it.
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            return self._process

    def _ask(
        self, process: subprocess.Popen[bytes], question: dict[str, Any], seconds: float
    ) -> dict[str, Any] | None:
        """A line there and a line back; None, and no process, where that took too long."""
        assert process.stdin is not None
        assert process.stdout is not None
        limit = threading.Timer(seconds, process.kill)
        limit.daemon = True
        limit.start()
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except (OSError, ValueError):
            line = b""
        finally:
            limit.cancel()
        if not line.endswith(b"\n"):
            self._end(process)
            return None
        said: dict[str, Any] = json.loads(line)
        return said

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError, ValueError):  # another thread may be reading from it
                    pipe.close()
