"""TRL's own GRPO and RLOO tests, without klmonitor and with it attached to every trainer.

    python benchmarks/trl_suite.py                  # clones TRL at the tag of the installed version
    python benchmarks/trl_suite.py --source CHECKOUT

The tests run under ``.cache/trl-suite/VERSION``, beside local stand-ins for the models and data
sets of the hub (`trl_tiny`), twice and with the same plugin (`trl_plugin`). A test whose outcome
is not the same both times is named, and makes the exit status 1; so does a monitor that failed,
refused a trainer or saw nothing. The counts go into a row of the table in ``docs/trl.md``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "trl-suite"
PAGE = ROOT / "docs" / "trl.md"
BEGIN, END = "<!-- begin: make test-trl-suite -->", "<!-- end -->"
REPOSITORY = "https://github.com/huggingface/trl"
PARTS = ("tests", "scripts", "pyproject.toml", "VERSION")
TESTS = ("tests/test_grpo_trainer.py", "tests/test_rloo_trainer.py")
HEAD = (
    "| TRL | its tests of | passed | failed | skipped | xfailed | differ | trainers watched "
    "| steps (with a pair) | errors | date |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def main() -> int:
    """Run both; 0 if no test tells them apart and the monitor was at work."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--source", type=Path, help="a checkout of TRL; default: clone its tag")
    parser.add_argument("-k", dest="keyword", default="", help="some tests only; writes no row")
    args = parser.parse_args()
    place = CACHE / version("trl")
    if not (place / "made").exists():
        make(place, args.source)
    without = run(place, args.keyword, attach=False)
    attached = run(place, args.keyword, attach=True)
    differ = differences(without, attached)
    for line in (*reasons(without), *differ, *attached["refused"]):
        print(line)
    print(line := row(place, attached, len(differ)))
    if not args.keyword:
        write_row(line)
    counts = attached["counts"]
    at_work = counts.get("steps with a pair", 0) > 0 and not counts["errors"]
    return 0 if at_work and not differ and not attached["refused"] else 1


def make(place: Path, source: Path | None) -> None:
    """TRL's tests, and what they load, in a directory of their own."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as clone:
        if source is None:
            tag = f"v{version('trl')}"
            command = ["git", "clone", "--quiet", "--depth=1", f"--branch={tag}", REPOSITORY, clone]
            subprocess.run(command, check=True)
        for part in PARTS:  # not the package itself, which would hide the installed one
            path = Path(source or clone) / part
            (shutil.copytree if path.is_dir() else shutil.copy)(path, place / part)
    script = ROOT / "benchmarks" / "trl_tiny.py"
    subprocess.run([sys.executable, script, place], env=environment(), check=False)
    (place / "made").touch()


def environment(**more: str) -> dict[str, str]:
    """One thread, no hub, the plugin on the path, and memory that is kept for the next step."""
    path = os.pathsep.join([str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    fixed = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    fixed |= {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
    return {**os.environ, **fixed, "PYTHONPATH": path, **more}


def run(place: Path, keyword: str, attach: bool) -> dict[str, Any]:
    """What the plugin wrote of one run of the tests."""
    name = "attached" if attach else "without"
    results = place / f"{name}.json"
    results.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "trl_plugin", "-p", "no:cacheprovider"]
    command += ["-k", keyword] if keyword else []
    settings = {"TRL_SUITE_RESULTS": str(results), "TRL_SUITE_ATTACH": str(int(attach))}
    with (place / f"{name}.log").open("w") as log:
        status = subprocess.run(
            [*command, *TESTS], cwd=place, env=environment(**settings), check=False,
            stdout=log, stderr=subprocess.STDOUT,
        ).returncode  # fmt: skip
    if status not in (0, 1):  # all passed, some failed
        raise SystemExit(f"pytest did not run the tests: see {log.name}")
    return dict(json.loads(results.read_text()))


def differences(without: dict[str, Any], attached: dict[str, Any]) -> list[str]:
    """One line a test whose outcome, or whose failure's message, is not the same."""
    lines = []
    for test in sorted({*without["outcomes"], *attached["outcomes"]}):
        before, after = (told(results, test) for results in (without, attached))
        if before != after:
            lines.append(f"DIFFERS {test}: {before} without, {after} attached")
    return lines


def told(results: dict[str, Any], test: str) -> tuple[str, str]:
    """Outcome and reason of a test, less what changes from run to run: numbers and addresses."""
    reason = re.sub(r"0x[0-9a-f]+|\d+", "#", results["reasons"].get(test, ""))
    return results["outcomes"].get(test, "did not run"), reason


def reasons(results: dict[str, Any]) -> list[str]:
    """One line a reason for which tests did not pass, the most frequent first."""
    found = Counter(told(results, test) for test in results["reasons"])
    return [f"{count:4} {outcome}: {reason}" for (outcome, reason), count in found.most_common()]


def row(place: Path, results: dict[str, Any], differ: int) -> str:
    """A line of the table."""
    outcomes, counts = Counter(results["outcomes"].values()), results["counts"]
    tested = " | ".join(str(outcomes[kind]) for kind in ("passed", "failed", "skipped", "xfailed"))
    suite = (place / "VERSION").read_text().strip()
    today = datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat()
    steps = f"{counts['steps']} ({counts['steps with a pair']})"
    return (
        f"| {version('trl')} | {suite} | {tested} | {differ} | {counts['trainers']} | {steps} "
        f"| {counts['errors']} | {today} |"
    )


def write_row(line: str) -> None:
    """Put a line into the page's table, in the place of an older one of this TRL."""
    page = PAGE.read_text()
    inside = re.search(f"{BEGIN}(.*?){END}", page, re.DOTALL)
    if inside is None:
        raise LookupError(f"{PAGE} has no section {BEGIN}")
    rows = [old for old in inside.group(1).splitlines() if re.match(r"\| \d", old)]
    rows = [old for old in rows if old.split("|")[1] != line.split("|")[1]]
    table = "\n".join([BEGIN, HEAD, *sorted([*rows, line], key=by_version), END])
    PAGE.write_text(page.replace(inside.group(0), table))


def by_version(line: str) -> list[int]:
    """Key that sorts lines of the table."""
    return [int(part) for part in re.findall(r"\d+", line.split("|")[1])]


if __name__ == "__main__":
    sys.exit(main())
