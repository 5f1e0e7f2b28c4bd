"""Run the recipes of docs/recipes.md against the trainers that install on a CPU.

    python tests/docs/run_recipes.py          # `make test-recipes`; minutes, mostly pip

The environments are under .cache/recipes, with the torch of constraints.txt and the newest of the
rest that goes together. AReaL pins an older torch and a hundred packages: it is installed without
them, beside those that its actor imports.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACE = ROOT / ".cache" / "recipes"
TESTS = ("pytest", "hypothesis", "numba")
TOGETHER = ("accelerate", "lightning", "torchrl", "tinker-cookbook")
AREAL = (
    *("aiofiles", "aiohttp", "colorlog", "datasets", "einops", "fastapi", "flask", "httpx"),
    *("hydra-core", "lark", "litellm", "math-verify", "openai-agents", "orjson", "pebble"),
    *("pillow", "psutil", "pybase64", "pylatexenc", "pyzmq", "ray", "setproctitle", "swanlab"),
    *("tabulate", "tenacity", "tensorboardx", "torchdata", "trackio", "transformers", "uvicorn"),
    *("uvloop", "wandb"),
)


def main() -> int:
    """0 if every recipe does what the page says."""
    failed = [
        name
        for name, packages, alone in (("together", TOGETHER, ()), ("areal", AREAL, ("areal",)))
        if not passes(environment(PLACE / name, packages, alone), alone or packages)
    ]
    print("failed: " + ", ".join(failed) if failed else "all passed")
    return 1 if failed else 0


def passes(python: Path, trainers: Sequence[str]) -> bool:
    """Whether the recipes pass, with these trainers installed."""
    show = f"import importlib.metadata as m; print({{n: m.version(n) for n in {list(trainers)}}})"
    subprocess.run([python, "-c", show], check=True)
    names = " ".join(name.replace("-", "_") for name in trainers)
    command = [python, "-m", "pytest", "-q", "-W", "ignore", "tests/docs/test_recipes.py"]
    environ = {**os.environ, "KLMONITOR_RECIPES": names}
    return subprocess.run(command, cwd=ROOT, env=environ, check=False).returncode == 0


def environment(place: Path, packages: Sequence[str], alone: Sequence[str]) -> Path:
    """The Python of an environment with these, and klmonitor from this checkout.

    Args:
        place: its folder.
        packages: with what they need.
        alone: without.
    """
    python, done = place / "bin" / "python", place / "installed"
    if done.exists() and done.stat().st_mtime >= (ROOT / "pyproject.toml").stat().st_mtime:
        return python
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    torch = next(line for line in lines if line.startswith("torch=="))
    venv.create(place, with_pip=True)
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    subprocess.run([*pip, "-c", ROOT / "constraints.txt", torch], check=True)
    subprocess.run([*pip, torch, *packages, *TESTS], check=True)
    subprocess.run([*pip, "--no-deps", *alone, "--editable", ROOT], check=True)
    done.touch()
    return python


if __name__ == "__main__":
    sys.exit(main())
