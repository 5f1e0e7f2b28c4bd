"""Follow the README as a new user would: its install lines from our wheel, then its blocks.

    python tests/docs/run_readme.py          # `make test-readme`; minutes, mostly pip

Each install line gets an environment of its own under .cache/readme, with `-c constraints.txt`, so
that torch is the pinned CPU build; the blocks that follow it run there as printed. Only the trainer
that the README leaves to the reader is put in: the demo's tiny one.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACE = ROOT / ".cache" / "readme"
TRAINER = (
    "from klmonitor_trl.demo import tiny; "
    "trainer = tiny.make_trainer(tiny.save_tiny_model('model'), 'out', steps=3, beta=0.04)"
)
BLOCK = re.compile(r"```(bash|python)\n(.*?)```", re.DOTALL)


def sections() -> list[tuple[str, list[str]]]:
    """(install line, the blocks of Python after it) of the README."""
    found: list[tuple[str, list[str]]] = []
    for kind, text in BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8")):
        line = re.search(r'^pip install "(klmonitor\[[\w,]+\])"', text)
        if kind == "bash" and line:
            found.append((line[1], []))
        elif kind == "python" and found:
            found[-1][1].append(text)
    return found


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints; stops everything where it fails."""
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))[:200]}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def main() -> None:
    """Build the wheel, then every section in its own environment."""
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir(parents=True)
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", PLACE / "dist", cwd=ROOT)
    (wheel,) = (PLACE / "dist").glob("*.whl")
    for number, (requirement, blocks) in enumerate(sections()):
        place = PLACE / f"section-{number}"
        venv.create(place / "venv", with_pip=True)
        python = place / "venv" / "bin" / "python"
        extra = requirement.removeprefix("klmonitor")
        pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        # The constraints first: without them torch would be a CUDA build of gigabytes.
        run(*pip, "-c", ROOT / "constraints.txt", f"{wheel}{extra}", cwd=place)
        for index, block in enumerate(blocks):
            script = place / f"block-{index}.py"
            code = block.replace("trainer = GRPOTrainer(...)", TRAINER)
            script.write_text(code, encoding="utf-8")
            said = run(python, script, cwd=place)
            print(f"{requirement}, block {index + 1}: ran, {len(said.splitlines())} lines printed")
    print("the README's install lines and blocks work")


if __name__ == "__main__":
    main()
