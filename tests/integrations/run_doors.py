"""The doors of other trainers, each tried on the real package in an environment of its own.

    python -m tests.integrations.run_doors [axolotl swift skyrl]   # `make test-doors`; mostly pip

An environment a trainer under .cache/doors, the CPU torch of constraints.txt first. The packages
themselves come without their dependencies, since what they pin pulls CUDA; what their RL trainers
import is named below. What was installed and what differed is printed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "doors"
TESTS = ("pytest", "hypothesis", "numba", "setuptools<81")

AXOLOTL = (
    *("huggingface_hub==1.17.0", "peft==0.20.0", "tokenizers==0.23.1", "transformers==5.16.1"),
    *("accelerate==1.13.0", "datasets==4.8.4", "trl==1.9.0", "kernels>=0.16,<0.17", "addict"),
    *("pydantic==2.12.5", "fire", "PyYAML", "requests", "einops", "colorama", "typer==0.25.1"),
    *("scipy", "art", "python-dotenv", "zstandard", "fastcore", "posthog==6.7.11", "wandb"),
    *("schedulefree==1.4.1", "sentencepiece", "mistral-common==1.11.5", "langdetect", "psutil"),
    *("tensorboard", "evaluate==0.4.1", "optimum==1.16.2", "triton==3.7.1"),
)
SWIFT = (
    *("transformers<5.20", "trl<1.0", "peft<0.21", "datasets>=4.0,<4.8.5", "accelerate", "addict"),
    *("aiohttp", "dacite", "einops", "fastapi", "importlib-metadata", "json-repair", "modelscope"),
    *("matplotlib", "nltk", "openai", "pandas", "pillow", "PyYAML", "requests", "rouge", "scipy"),
    *("safetensors", "sentencepiece", "simplejson", "sortedcontainers", "tensorboard", "tiktoken"),
    *("tqdm", "uvicorn", "zstandard", "binpacking", "msgspec"),
)
SKYRL = (
    *(
        "transformers>=5.6.1,<=5.8.0",
        "peft==0.18.1",
        "datasets>=4",
        "ray==2.56.0",
        "loguru",
        "tqdm",
    ),
    *("tensorboard", "func_timeout", "hydra-core==1.3.2", "accelerate", "omegaconf", "tensordict"),
    *("jaxtyping", "polars", "fastapi", "uvicorn", "cloudpathlib", "s3fs", "pillow", "rich"),
    *("safetensors", "typer", "torchdata"),
)
DOORS = {
    "axolotl": (
        AXOLOTL,
        ("axolotl==0.19.0", "axolotl-contribs-lgpl", "axolotl-contribs-mit", "bitsandbytes"),
    ),
    "swift": (SWIFT, ("ms-swift==4.6.0", "transformers-stream-generator", "oss2")),
    "skyrl": (SKYRL, ("skyrl==0.3.0", "skyrl-gym==0.4.0")),
}
"""Folder of tests -> what its trainer needs, and what is installed without dependencies."""


def main(names: list[str]) -> int:
    """0 if all pass."""
    failed = [name for name in names or list(DOORS) if not passes(name)]
    print(f"failed: {', '.join(failed)}" if failed else "all passed")
    return 1 if failed else 0


def passes(name: str) -> bool:
    """Whether the tests of a door pass, in its environment."""
    python = environment(name)
    package = DOORS[name][1][0].partition("==")[0]
    say = f"from importlib.metadata import version; print({name!r}, version({package!r}))"
    subprocess.run([python, "-c", say], check=True)
    plain = ("-p", "no:cacheprovider", "-p", "no:anyio", "--show-capture=no", "-s", "-q")
    command = [python, "-m", "pytest", *plain, f"tests/integrations/{name}"]
    environ = {"OMP_NUM_THREADS": "1", "AXOLOTL_DO_NOT_TRACK": "1", **os.environ}
    return subprocess.run(command, cwd=ROOT, env=environ, check=False).returncode == 0


def environment(name: str) -> Path:
    """The Python of a door's environment, made where it is not there."""
    place = CACHE / name
    python, done = place / "bin" / "python", place / "installed"
    if not done.exists() or done.stat().st_mtime < (ROOT / "pyproject.toml").stat().st_mtime:
        needs, bare = DOORS[name]
        lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        torch = next(line for line in lines if line.startswith("torch=="))
        venv.create(place, with_pip=True)
        pip(python, torch)
        pip(python, torch, *needs, *TESTS)
        pip(python, "--no-deps", *bare)
        pip(python, "--no-deps", "--editable", str(ROOT))
        done.touch()
    return python


def pip(python: Path, *what: str) -> None:
    """Install."""
    quiet = ("--quiet", "--disable-pip-version-check")
    subprocess.run([python, "-m", "pip", "install", *quiet, *what], check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
