"""Where the CPU's kernels are compiled and kept: by a process beside training, never within it.

A cache is a directory: numba's files, a lock, and a mark that says that they are whole. Its name
holds a digest of what was compiled, for which numba, Python and processor. Who finds no mark and
gets the lock starts one child that compiles at low priority; the lock is the child's until it ends,
so however many processes start at once, one of them compiles. All look for the mark now and then,
and load what is there on a thread of their own.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import tempfile
import threading
import time
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

try:
    import fcntl
except ImportError:  # where there are no such locks
    fcntl = None  # type: ignore[assignment]

KERNELS = {
    "klmonitor.summary.numba_kernel": "add_pair",
    "klmonitor.summary.numba_signatures": "add_sequences",
    "klmonitor.summary.numba_pulls": "add_pulls",
    "klmonitor.summary.numba_unclipped": "add_unclipped",
    "klmonitor.summary.numba_prompts": "fill_keys",
}
"""Modules, and the function of each that is compiled for its `TYPES`."""
SOURCES = (
    *(f"{module.rpartition('.')[2]}.py" for module in KERNELS),
    *("collected.py", "fields.py"),
)
"""What the compiled code is made of, constants included."""
MARK, LOCK = "whole", "lock"
LOOK_SECONDS = 0.5
"""Between two looks for the mark."""
NICE = 19


@cache
def digest() -> str:
    """Of what is compiled, and for what."""
    made = hashlib.sha256()
    for name in SOURCES:
        made.update(Path(__file__).with_name(name).read_bytes())
    for part in (version("numba"), version("llvmlite"), sys.version, _processor()):
        made.update(part.encode())
    return made.hexdigest()[:16]


def _processor() -> str:
    """What compiled code may use of the processor."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        wanted = {"model name", "flags", "Features", "CPU part"}
        return "".join(sorted({line for line in lines if line.partition("\t")[0] in wanted}))
    return platform.processor() or platform.machine()


def directory() -> Path:
    """The cache, made if it is not there.

    In ``KLMONITOR_CACHE_DIR``, else ``$XDG_CACHE_HOME/klmonitor``, else ``~/.cache/klmonitor``;
    where that cannot be written, in the directory for temporary files.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    wanted = Path(os.environ.get("KLMONITOR_CACHE_DIR") or Path(home) / "klmonitor")
    spare = (
        Path(tempfile.gettempdir()) / f"klmonitor-{os.getuid() if hasattr(os, 'getuid') else ''}"
    )
    for place in (wanted, spare):
        found = place / f"numba-{digest()}"
        with suppress(OSError):
            found.mkdir(parents=True, exist_ok=True, mode=0o700)
            if os.access(found, os.W_OK):
                return found
    raise OSError(f"neither {wanted} nor {spare} can be written: set KLMONITOR_CACHE_DIR")


def load(place: Path) -> None:
    """Load the kernels' modules, whose functions are kept in a directory."""
    import numba

    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(place)
    try:
        for module, name in KERNELS.items():
            kernel = import_module(module)
            function = getattr(kernel, name)
            for signature in kernel.TYPES:  # found in the cache, or compiled by the child
                function.compile(signature)
            function.disable_compile()
    finally:
        numba.config.CACHE_DIR = before


class Loader:
    """Brings the kernels into this process once they are compiled, while others do their work.

    Attributes:
        error: why there is none and will be none in this process; None: nothing is wrong so far.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None
        self._place: Path | None = None
        self._thread: threading.Thread | None = None
        self._child: int | None = None
        self._tried = False
        self._next = 0.0
        self._loaded = False

    def ready(self) -> bool:
        """Whether they are loaded; else this sees to it that they will be. Costs microseconds.

        Raises:
            ModuleNotFoundError: numba is not installed.
        """
        if self._loaded or self.error is not None:
            return self._loaded
        if self._thread is None and time.monotonic() >= self._next:
            self._next = time.monotonic() + LOOK_SECONDS
            self._look()
        return self._loaded

    def wait(self, seconds: float) -> bool:
        """Wait until they are loaded, or cannot be; for tests and benchmarks."""
        deadline = time.monotonic() + seconds
        while not self.ready() and self.error is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return self._loaded

    def _look(self) -> None:
        if self._place is None:
            if find_spec("numba") is None:
                raise ModuleNotFoundError("No module named 'numba'", name="numba")
            self._place = directory()
        ended = self._child is not None and self._reap(self._child)
        if (self._place / MARK).exists():
            self._thread = threading.Thread(
                target=self._load, args=(self._place,), name="klmonitor: kernel", daemon=True
            )
            self._thread.start()
        elif ended:
            self.error = RuntimeError("the process that compiles it has ended without success")
        elif not self._tried and fcntl is not None:
            self._child = start(self._place)
            self._tried = self._child is not None

    def _reap(self, child: int) -> bool:
        """Whether the child has ended; what it has made, or not, is seen by its mark."""
        ended = 0
        try:
            ended, _ = os.waitpid(child, os.WNOHANG)
        except ChildProcessError:  # of the process that this one was forked from, or asked for
            self._child = None
        if ended:
            self._child = None
        return bool(ended)

    def _load(self, place: Path) -> None:
        try:
            load(place)
            self._loaded = True
        except Exception as error:  # noqa: BLE001  # told by who asks for the kernel
            self.error = error


def start(place: Path) -> int | None:
    """Start the child that compiles into a directory, unless another has the lock.

    Returns:
        The child's process id; None: there is no need of one.
    """
    with (place / LOCK).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return None
        if (place / MARK).exists():
            return None
        os.set_inheritable(lock.fileno(), True)
        null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; import {__name__} as k; k.main(sys.argv[1])"
        )
        # -I: nothing of the working directory is imported.
        arguments = [sys.executable, "-I", "-c", code, str(place)]
        return os.posix_spawn(sys.executable, arguments, os.environ, file_actions=null)


def main(place: str) -> None:
    """What the child does."""
    os.nice(NICE)
    load(Path(place))
    fresh = Path(place) / f"{MARK}.{os.getpid()}"
    fresh.write_text(digest(), encoding="utf-8")
    fresh.replace(Path(place) / MARK)
