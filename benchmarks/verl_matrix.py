"""The tests of verl's integration, in an environment of their own.

    python benchmarks/verl_matrix.py --quick    # newest verl, the synthetic tier (8 minutes)
    python benchmarks/verl_matrix.py            # also 0.7.1 and 0.8.0, then the real runs (hours)

The environment is ``.cache/verl/newest``. An older verl is put before it, its code alone: what it
needs besides is the newest version's. Real runs are kept in ``.cache/verl/runs``: what is finished
is not run again, so that a broken-off matrix goes on where it was (``--fresh``: all again).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "verl"
NEWEST = CACHE / "newest"
PYTHON = NEWEST / "bin" / "python"
OLDER = ("0.7.1", "0.8.0")
NEEDS = (
    *("verl>=0.9.1", "TransferQueue>=0.1.10", "fastapi", "uvicorn", "cachetools", "numba"),
    *("setuptools", "pytest", "hypothesis", "tensorboard"),
)
TESTS = "tests/integrations/verl"


def main() -> int:
    """0 if all tests pass."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the synthetic tier on newest verl")
    parser.add_argument("--fresh", action="store_true", help="take no run from the cache")
    args = parser.parse_args()
    environment()
    failed = [] if tests("newest", {}) else ["newest"]
    if not args.quick:
        failed += [v for v in OLDER if not tests(v, {"PYTHONPATH": str(older(v))})]
        real = {"KLMONITOR_VERL": "all", "KLMONITOR_VERL_LAB": str(CACHE)}
        if args.fresh:
            real["KLMONITOR_VERL_FRESH"] = "1"
        if not tests("newest, real runs", real, "test_real.py"):
            failed.append("real runs")
    print("failed: " + ", ".join(failed) if failed else "all passed")
    return 1 if failed else 0


def environment() -> None:
    """The newest verl, and klmonitor from this checkout."""
    done = NEWEST / "installed"
    if done.exists() and done.stat().st_mtime >= (ROOT / "pyproject.toml").stat().st_mtime:
        return
    venv.create(NEWEST, with_pip=True)
    pip("-c", str(ROOT / "constraints.txt"), "torch")
    torch = subprocess.check_output(
        [PYTHON, "-c", "import torch; print(torch.__version__.partition('+')[0])"], text=True
    )
    pip(f"torch=={torch.strip()}", *NEEDS)
    pip("--no-deps", "--editable", str(ROOT))
    done.touch()


def older(version: str) -> Path:
    """A folder with the code of a version of verl."""
    folder = CACHE / version
    if not (folder / "verl").exists():
        pip("--no-deps", "--target", str(folder), f"verl=={version}")
    return folder


def pip(*what: str) -> None:
    """Install into the environment."""
    quiet = ("--quiet", "--disable-pip-version-check")
    subprocess.run([PYTHON, "-m", "pip", "install", *quiet, *what], check=True)


def tests(name: str, environ: dict[str, str], *files: str) -> bool:
    """Whether the tests of this directory pass."""
    print(f"=== verl {name}", flush=True)
    command = [PYTHON, "-m", "pytest", "-q", *(f"{TESTS}/{file}" for file in files or [""])]
    base = {"OMP_NUM_THREADS": "1", **os.environ, "VERL_USE_EXTERNAL_PLUGINS": "none"}
    return subprocess.run(command, cwd=ROOT, env={**base, **environ}, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
