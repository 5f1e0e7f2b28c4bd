"""Files that are made anew: under a name that nobody knows, put in place in one move."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

SUFFIX = ".part"
_FLAGS = (
    os.O_WRONLY
    | os.O_CREAT
    | os.O_EXCL  # what is there already, a link too, is never written to
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_BINARY", 0)
)


@contextmanager
def replaced(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file to be written that takes the place of `path` when all of it is on the disk.

    Args:
        path: what is replaced, or made.
        mode: permission bits of the new file, before the umask.

    Raises:
        OSError: it cannot be written; `path` is as it was.
    """
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}{SUFFIX}")
    try:
        with os.fdopen(os.open(fresh, _FLAGS, mode), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        with suppress(OSError):
            fresh.unlink()
        raise


def clear_parts(directory: Path) -> None:
    """Remove what a process that died has left half written."""
    with suppress(OSError):
        for part in directory.glob(f".*{SUFFIX}"):
            with suppress(OSError):
                part.unlink()


def sync_directory(path: Path) -> None:
    """Let the names in a directory survive a loss of power, where the system can."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
