"""Run the recipes of docs/recipes.md against the trainers that install on a CPU.

    python tests/docs/run_recipes.py          # `make test-recipes`; minutes, mostly pip

The environment is .cache/recipes, with the torch of constraints.txt and the newest of the rest that
goes together; what they were is printed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACE = ROOT / ".cache" / "recipes"
PYTHON = PLACE / "bin" / "python"
TRAINERS = ("accelerate", "lightning", "torchrl", "tinker-cookbook")


def main() -> int:
    """0 if every recipe does what the page says."""
    environment()
    subprocess.run([PYTHON, "-m", "pip", "freeze", "--exclude-editable"], check=True)
    command = [PYTHON, "-m", "pytest", "-q", "-W", "ignore", "tests/docs/test_recipes.py"]
    environ = {**os.environ, "KLMONITOR_RECIPES": "all"}
    return subprocess.run(command, cwd=ROOT, env=environ, check=False).returncode


def environment() -> None:
    """The trainers, and klmonitor from this checkout."""
    done = PLACE / "installed"
    if done.exists() and done.stat().st_mtime >= (ROOT / "pyproject.toml").stat().st_mtime:
        return
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    torch = next(line for line in lines if line.startswith("torch=="))
    venv.create(PLACE, with_pip=True)
    pip = (PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    subprocess.run([*pip, "-c", ROOT / "constraints.txt", torch], check=True)
    subprocess.run([*pip, torch, *TRAINERS, "numba", "pytest", "hypothesis"], check=True)
    subprocess.run([*pip, "--no-deps", "--editable", ROOT], check=True)
    done.touch()


if __name__ == "__main__":
    sys.exit(main())
