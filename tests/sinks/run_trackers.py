"""Send a run through trackio, MLflow and SwanLab, each in a clean environment from our wheel.

    python tests/sinks/run_trackers.py          # `make test-trackers`; minutes, mostly pip

The environments are made under .cache/trackers with the torch of constraints.txt; the trackers are
the newest, and what they were is printed.
"""

from __future__ import annotations

import shutil
import sys
import venv

from tests.docs.run_readme import ROOT, run

PLACE = ROOT / ".cache" / "trackers"
TRACKERS = ("trackio", "mlflow", "swanlab")


def main() -> None:
    """Build the wheel, then an environment and a run a tracker."""
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir(parents=True)
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", PLACE / "dist", cwd=ROOT)
    (wheel,) = (PLACE / "dist").glob("*.whl")
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    torch = next(line for line in lines if line.startswith("torch=="))
    for name in TRACKERS:
        venv.create(PLACE / name, with_pip=True)
        python = PLACE / name / "bin" / "python"
        pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        run(*pip, torch, f"{wheel}[{name}]", "pytest", "hypothesis", cwd=PLACE)
        test = f"tests/sinks/test_trackers.py::test_a_run_arrives_whole_in_{name}"
        said = run(
            python, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", test, cwd=ROOT
        )
        if "1 passed" not in said:
            sys.exit(said)
        version = run(python, "-m", "pip", "show", name, cwd=PLACE).splitlines()[1]
        print(f"{name} ({version}): a run of three steps with its alerts arrived whole")
        shutil.rmtree(PLACE / name)


if __name__ == "__main__":
    main()
