"""An environment of a trainer's own under ``.cache``, and our tests of its integration in it."""

from __future__ import annotations

import argparse
import os
import subprocess
import venv
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Trainer:
    """A trainer whose integration is tested.

    Attributes:
        name: its package, and the folder of its tests.
        install: installs it, and what it needs, once torch is there.
        older: versions whose code alone is put before the environment's.
        environ: variables of every test.
    """

    name: str
    install: Callable[[Trainer], None]
    older: Collection[str] = ()
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def cache(self) -> Path:
        """What is kept of it."""
        return ROOT / ".cache" / self.name

    @property
    def python(self) -> Path:
        """The environment's."""
        return self.cache / "newest" / "bin" / "python"

    def environment(self) -> None:
        """The newest version, and klmonitor from this checkout."""
        done = self.cache / "newest" / "installed"
        if done.exists() and done.stat().st_mtime >= (ROOT / "pyproject.toml").stat().st_mtime:
            return
        venv.create(self.cache / "newest", with_pip=True)
        self.pip("-c", str(ROOT / "constraints.txt"), "torch")
        self.install(self)
        self.pip("--no-deps", "--editable", str(ROOT))
        done.touch()

    def torch(self) -> str:
        """What pip is told so that torch stays as it is."""
        code = "import torch; print(torch.__version__.partition('+')[0])"
        return f"torch=={subprocess.check_output([self.python, '-c', code], text=True).strip()}"

    def before(self, version: str) -> Path:
        """A folder with the code of a version."""
        folder = self.cache / version
        if not (folder / self.name).exists():
            self.pip("--no-deps", "--target", str(folder), f"{self.name}=={version}")
        return folder

    def pip(self, *what: str, **environ: str) -> None:
        """Install into the environment."""
        quiet = ("--quiet", "--disable-pip-version-check")
        command = [self.python, "-m", "pip", "install", *quiet, *what]
        subprocess.run(command, check=True, env={**os.environ, **environ})

    def tests(self, title: str, environ: Mapping[str, str], *files: str) -> bool:
        """Whether the tests of its integration pass."""
        print(f"=== {self.name} {title}", flush=True)
        folder = f"tests/integrations/{self.name}"
        command = [self.python, "-m", "pytest", "-q", *(f"{folder}/{x}" for x in files or [""])]
        every = {"OMP_NUM_THREADS": "1", **os.environ, **self.environ, **environ}
        return subprocess.run(command, cwd=ROOT, env=every, check=False).returncode == 0

    def main(self, about: str) -> int:
        """The tests that the command line asks for; 0 if all pass."""
        parser = argparse.ArgumentParser(description=about.splitlines()[0])
        parser.add_argument("--quick", action="store_true", help="the synthetic tier, newest only")
        parser.add_argument("--fresh", action="store_true", help="take no run from the cache")
        args = parser.parse_args()
        self.environment()
        failed = [] if self.tests("newest", {}) else ["newest"]
        if not args.quick:
            paths = ((version, {"PYTHONPATH": str(self.before(version))}) for version in self.older)
            failed += [version for version, path in paths if not self.tests(version, path)]
            prefix = f"KLMONITOR_{self.name.upper()}"
            real = {prefix: "all", f"{prefix}_LAB": str(self.cache)}
            real |= {f"{prefix}_FRESH": "1"} if args.fresh else {}
            failed += [] if self.tests("newest, real runs", real, "test_real.py") else ["real runs"]
        print("failed: " + ", ".join(failed) if failed else "all passed")
        return 1 if failed else 0
