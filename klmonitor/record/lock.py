"""Who writes in a run directory: one process at a time, one writer in it.

A POSIX record lock on ``.lock``: the kernel lets it go with the process, however that ends, and a
forked child (a data loader that outlives its parent) does not inherit it. Where the file system has
no locks, the file's text tells who holds it: a process of this host that is alive, or of another
host that has touched it within `STALE_SECONDS`.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from klmonitor.record.files import LOCK

try:
    import fcntl
except ImportError:  # pragma: no cover  # not on Windows
    fcntl = None  # type: ignore[assignment]

STALE_SECONDS = 60.0
"""A lock of another host that nobody has touched for so long is of a process that is gone."""
SIZE = 512
"""Bytes of the text, so that a shorter one covers a longer."""
MOST = 10_000
"""Directories that are tried: ``run``, ``run-2``, ``run-3``, ..."""
_TAKEN = (errno.EACCES, errno.EAGAIN)


class Owner(Protocol):
    """A writer of this process."""

    def retire(self) -> None:
        """Another one has the directory now: write what waits, and write there no more."""


@dataclass
class Lock:
    """A directory that is ours.

    Attributes:
        path: the lock's file.
        owner: who writes there.
        pid: the process that took it.
        descriptor: of the file, open while the lock is held; None: told by the text alone.
    """

    path: Path
    owner: Owner
    pid: int
    descriptor: int | None

    def is_ours(self, owner: Owner) -> bool:
        """Whether `owner` still has the directory in this process."""
        return self.owner is owner and self.pid == os.getpid()

    def beat(self) -> None:
        """Show other hosts that somebody is alive."""
        with suppress(OSError):
            os.utime(self.path)

    def release(self, owner: Owner) -> None:
        """Let go, if it is still `owner`'s."""
        with _guard:
            if not self.is_ours(owner):
                return
            _held.pop(str(self.path), None)
            self.pid = 0
            if self.descriptor is None:
                with suppress(OSError):
                    self.path.unlink()
            else:
                os.close(self.descriptor)


_held: dict[str, Lock] = {}
_guard = threading.RLock()


def claim(wanted: Path, owner: Owner, *, take_over: bool = True) -> tuple[Path, Lock]:
    """The directory that is wanted, or the first of ``-2``, ``-3``, ... that nobody writes in.

    Args:
        wanted: made if it is not there.
        owner: who wants to write there.
        take_over: whether another writer of this process has to go; False: it is left alone.

    Raises:
        OSError: it cannot be made or locked.
    """
    base = wanted if wanted.name not in ("", "..") else wanted.resolve()
    for number in range(1, MOST):
        path = wanted if number == 1 else base.with_name(f"{base.name}-{number}")
        path.mkdir(parents=True, exist_ok=True)
        lock = _take(path.absolute() / LOCK, owner, take_over)
        if lock is not None:
            return path, lock
    raise OSError(errno.EBUSY, "every directory of that name is being written to")


def _take(path: Path, owner: Owner, take_over: bool) -> Lock | None:
    with _guard:
        held = _held.get(str(path))
        if held is not None and held.pid == os.getpid() and _is_there(held):
            if not take_over:
                return None
            before, held.owner = held.owner, owner
        else:
            before = None
            held = _locked(path, owner)
            if held is None:
                return None
            _held[str(path)] = held
    if before is not None:
        before.retire()
    return held


def _is_there(lock: Lock) -> bool:
    """Whether the lock's file still is the one that was locked."""
    try:
        status = lock.path.stat()
        if lock.descriptor is None:
            return True
        mine = os.fstat(lock.descriptor)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == (mine.st_dev, mine.st_ino)


def _locked(path: Path, owner: Owner) -> Lock | None:
    """The lock, None where somebody else has it."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    while True:
        descriptor = os.open(path, flags, 0o666)
        try:
            found = _try(descriptor)
        except OSError as error:
            os.close(descriptor)
            if fcntl is not None and error.errno in _TAKEN:
                return None
            return _told(path, owner)  # no locks on this file system
        lock = Lock(path, owner, os.getpid(), descriptor)
        if found and _is_there(lock):  # else it was removed between our two calls
            os.pwrite(descriptor, _text(), 0)
            return lock
        os.close(descriptor)


def _try(descriptor: int) -> bool:
    if fcntl is None:
        raise OSError(errno.ENOSYS, "no locks")
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True


def _text() -> bytes:
    text = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
    return text.ljust(SIZE).encode()


def _told(path: Path, owner: Owner) -> Lock | None:
    """By the file's text alone; two that find a stale one at the same time are told apart by it."""
    if _is_alive(path):
        return None
    mine = path.with_name(f"{LOCK}.{secrets.token_hex(8)}.part")
    mine.write_bytes(_text())
    mine.replace(path)
    time.sleep(0.01)
    return Lock(path, owner, os.getpid(), None) if path.read_bytes() == _text() else None


def _is_alive(path: Path) -> bool:
    """Whether the process that a lock's text names may still be writing."""
    try:
        body = json.loads(path.read_bytes())
        pid, host = int(body["pid"]), str(body["host"])
        age = time.time() - path.stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError):
        return False  # just made by ourselves, or half written by a process that died
    if host != socket.gethostname():
        return age < STALE_SECONDS
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
