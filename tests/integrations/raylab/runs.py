"""Real runs of a trainer on Ray and a CPU, each in a process of its own.

A finished run is kept in the trainer's lab, ``.cache/TRAINER/runs``, and not run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

SHARED = Path(__file__).parent
TESTS = SHARED.parent
ROOT = TESTS.parents[1]


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """A run.

    Attributes:
        ranks: data-parallel ranks.
        steps: of the trainer's count.
        watched: with klmonitor.
        fault: of `raylab_faults`; empty: none.
        more: further arguments of the trainer's command.
    """

    ranks: int = 1
    steps: int = 3
    watched: bool = True
    fault: str = ""
    more: tuple[str, ...] = ()


@dataclass(frozen=True)
class Done:
    """What is left of a run.

    Attributes:
        folder: of everything it wrote.
        run_dir: of the record.
        rc: its exit status.
        log: what it printed.
    """

    folder: Path
    run_dir: Path
    rc: int
    log: str

    @property
    def rows(self) -> list[dict]:
        """Rows that the trainer's loggers were given: step and data."""
        path = self.folder / "rows.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def said(self) -> list[str]:
        """Lines of ours in the log."""
        return [line for line in self.log.splitlines() if "klmonitor:" in line]


class RayRuns(ABC):
    """The real runs of one trainer.

    Args:
        specs: name -> the run.

    Attributes:
        lab: the folder of what is kept.
    """

    trainer: ClassVar[str]
    """Its package, and the folder of its tests."""
    record: ClassVar[str]
    """The record's folder within a run's."""
    limit: ClassVar[int]
    """Seconds that a run may take on a busy machine."""

    def __init__(self, specs: Mapping[str, RunSpec]) -> None:
        self.specs = specs
        self._variable = f"KLMONITOR_{self.trainer.upper()}"
        kept = os.environ.get(f"{self._variable}_LAB", ROOT / ".cache" / self.trainer)
        self.lab = Path(kept)

    @abstractmethod
    def environ(self, spec: RunSpec, folder: Path) -> dict[str, str]:
        """Variables of a run beside those of every one."""

    @abstractmethod
    def command(self, name: str, spec: RunSpec, folder: Path) -> Sequence[str]:
        """The python module that is run, and its arguments."""

    def prepare(self, spec: RunSpec, folder: Path) -> None:  # noqa: B027  # most need nothing
        """Put into the empty folder what the run begins with."""

    def run(self, name: str) -> Done:
        """A run by its name; taken from the lab where it is there, of any source of ours.

        What a run of another source has left is used too unless KLMONITOR_*_FRESH is set: it is
        minutes that are saved, and the tests say what source they have seen.
        """
        spec, folder = self.specs[name], self.lab / "runs" / name
        wanted = {"spec": json.loads(json.dumps(asdict(spec))), self.trainer: version(self.trainer)}
        if os.environ.get(f"{self._variable}_FRESH"):
            wanted["source"] = self._source()
        done = folder / "done.json"
        kept = json.loads(done.read_text()) if done.exists() else {"rc": None}
        fine = kept["rc"] == 0 or (spec.fault == "worker" and kept["rc"] is not None)
        if not fine or any(kept.get(key) != value for key, value in wanted.items()):
            kept = self._run(name, spec, folder)
        log = (folder / "log").read_text()
        return Done(folder, folder / self.record, kept["rc"], log)

    def _source(self) -> str:
        """A digest of what a run depends on."""
        digest = hashlib.sha256()
        ours = ROOT / "klmonitor", ROOT / "integrations" / f"klmonitor_{self.trainer}"
        for folder in (*ours, SHARED, TESTS / self.trainer):
            for path in sorted(folder.rglob("*.py")):
                if not path.name.startswith("test_") and "static" not in path.parts:
                    digest.update(path.read_bytes())
        return digest.hexdigest()[:16]

    def _run(self, name: str, spec: RunSpec, folder: Path) -> dict:
        subprocess.run(["rm", "-rf", str(folder)], check=True)
        folder.mkdir(parents=True)
        self.prepare(spec, folder)
        cpu = TESTS / self.trainer / "cpu"
        ray = Path(f"/tmp/klm{os.getpid()}")  # a socket's path is short
        places = [str(cpu), str(SHARED / "cpu"), os.environ.get("PYTHONPATH", "")]
        environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("KLMONITOR_", "RAY_"))},
            "PYTHONPATH": os.pathsep.join(place for place in places if place),
            "ON_CPU_ORDER": "1",
            "ON_CPU_DUMP": str(folder / "dump") if spec.watched else "",
            "ON_CPU_FAULT": spec.fault,
            "STUB_NOISE": "0.02",
            "STUB_HASHES": str(folder / "weights"),
            "KLMONITOR_CACHE_DIR": str(self.lab / "kernels"),
            "RAY_TMPDIR": str(ray),
            "RAY_DEDUP_LOGS": "0",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            **self.environ(spec, folder),
        }
        if not (self.lab / "tiny" / "config.json").exists():
            making = [sys.executable, str(cpu / "make_tiny.py"), str(self.lab)]
            subprocess.run(making, env=environ, check=True)
        ray.mkdir(exist_ok=True)
        limited = ("timeout", "-k", "10", str(self.limit), sys.executable, "-m")
        started = time.time()
        with (folder / "log").open("w") as log:
            rc = subprocess.run(
                [*limited, *self.command(name, spec, folder)],
                env=environ,
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        subprocess.run(["rm", "-rf", str(ray)], check=False)
        body = {
            "spec": asdict(spec),
            self.trainer: version(self.trainer),
            "source": self._source(),
            "rc": rc,
            "seconds": round(time.time() - started),
        }
        (folder / "done.json").write_text(json.dumps(body))
        return body
