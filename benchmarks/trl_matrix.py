"""The equality tests against TRL of other versions, in one environment each.

    python benchmarks/trl_matrix.py                    # every version of the table below
    python benchmarks/trl_matrix.py --only 1.9.2 --keep

Each environment is built under ``.cache/trl-matrix/VERSION`` (torch first, as pinned in
constraints.txt, so that its CPU build is taken), runs the tests that compare our numbers with the
ones that TRL logs, and is deleted unless ``--keep`` is given. The table of results replaces the one
in ``docs/trl.md``; a version that is not run keeps its row.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "trl-matrix"
PAGE = ROOT / "docs" / "trl.md"
BEGIN, END = "<!-- begin: make test-trl-matrix -->", "<!-- end -->"
TESTS = [
    f"tests/integrations/trl/test_{name}.py"
    for name in ("equality", "trainers", "capability", "resume")
]
MEASURED = ("GRPO", "RLOO")

TRANSFORMERS = {
    "0.19.1": "4.53.3",
    "0.22.2": "4.56.2",
    "0.29.1": "4.57.6",
    "1.0.0": "5.4.0",
    "1.6.0": "5.10.4",
    "1.9.2": "5.14.1",
    "1.12.0": "5.17.0",
    "1.14.2": "5.21.0",
    "1.16.0": "5.23.0",
}
"""Version of TRL -> a version of transformers of the same weeks."""
OLD_ACCELERATE = {"0.19.1": "1.8.1", "0.22.2": "1.10.1"}
"""Where today's accelerate does not fit the transformers above."""


def main() -> int:
    """Run the versions asked for; 0 if every one passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="*", choices=TRANSFORMERS, default=list(TRANSFORMERS))
    parser.add_argument("--keep", action="store_true", help="keep the environments")
    parser.add_argument("--build", action="store_true", help="only build the environments")
    args = parser.parse_args()
    rows = read_rows()
    passed = True
    for trl in args.only:
        place = CACHE / trl
        if not (place / "built").exists():
            build(place, trl)
        if args.build:
            continue
        rows[trl] = row(trl, CACHE / f"{trl}.xml", run(place, trl))
        passed &= " 0 failed" in rows[trl]
        print(rows[trl], flush=True)
        write_rows(rows)
        if not args.keep:
            shutil.rmtree(place)
    return 0 if passed else 1


def build(place: Path, trl: str) -> None:
    """One environment: torch, then TRL with its transformers, then this package."""
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    install = [place / "bin" / "python", "-m", "pip", "install", "--quiet"]
    constraints = ["-c", ROOT / "constraints.txt"]
    subprocess.run([*install, *constraints, "torch"], check=True)
    pins = [f"trl=={trl}", f"transformers=={TRANSFORMERS[trl]}", "jinja2", "numpy", "pytest"]
    pins += ["requests"]  # which some of them import and none requires
    pins += ["numba"]  # of klmonitor[fast]: what people run
    if trl in OLD_ACCELERATE:
        pins.append(f"accelerate=={OLD_ACCELERATE[trl]}")
    torch = next(line for line in read_constraints() if line.startswith("torch=="))
    subprocess.run([*install, torch, *pins], check=True)
    subprocess.run([*install, "--no-deps", "--editable", ROOT], check=True)
    (place / "built").touch()


def read_constraints() -> list[str]:
    """The lines of constraints.txt."""
    return (ROOT / "constraints.txt").read_text().splitlines()


def run(place: Path, trl: str) -> str:
    """Run the tests; the last line that pytest printed."""
    command = [place / "bin" / "python", "-m", "pytest", "-q", *TESTS, "-o", "filterwarnings="]
    command += ["-p", "no:cacheprovider", f"--junitxml={CACHE / trl}.xml"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    output = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    ).stdout
    (CACHE / f"{trl}.log").write_text(output)
    return output.strip().rpartition("\n")[2]


def row(trl: str, results: Path, last_line: str) -> str:
    """A line of the table: counts, and the largest difference that a test measured."""
    today = datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat()
    start = f"| {trl} | {TRANSFORMERS[trl]} |"
    if not results.exists():
        return f"{start} did not run: {last_line} | | | {today} |"
    suite = ElementTree.parse(results).getroot()
    cases = list(suite.iter("testcase"))
    found = [{child.tag for child in case} for case in cases]
    failed = sum(bool(tags & {"failure", "error"}) for tags in found)
    skipped = sum("skipped" in tags for tags in found)
    largest: dict[str, float] = {}
    for measured in suite.iter("property"):
        name, value = measured.attrib["name"], float(measured.attrib["value"])
        largest[name] = max(largest.get(name, 0.0), value)
    cells = [f"{largest[name]:.1g}" if name in largest else "-" for name in MEASURED]
    counts = f"{len(cases) - failed - skipped} passed, {failed} failed, {skipped} skipped"
    return f"{start} {counts} | {' | '.join(cells)} | {today} |"


def read_rows() -> dict[str, str]:
    """Version -> its line in the table as it is."""
    inside = re.search(f"{BEGIN}(.*?){END}", PAGE.read_text(), re.DOTALL)
    lines = inside.group(1).splitlines() if inside else []
    return {line.split("|")[1].strip(): line for line in lines if re.match(r"\| \d", line)}


def write_rows(rows: dict[str, str]) -> None:
    """Replace the table, oldest version first."""
    head = ["| TRL | transformers | tests | GRPO | RLOO | date |", "|---|---|---|---|---|---|"]
    table = "\n".join([BEGIN, *head, *(rows[trl] for trl in TRANSFORMERS if trl in rows), END])
    page = PAGE.read_text()
    PAGE.write_text(re.sub(f"{BEGIN}.*?{END}", lambda _: table, page, flags=re.DOTALL))


if __name__ == "__main__":
    sys.exit(main())
