"""What is installed: all of the package and the page's files, nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from klmonitor.dashboard.assets import SCRIPTS, STYLES

ROOT = Path(__file__).parents[1]
MOST_BYTES = 1_000_000
SUFFIXES = {"", ".css", ".html", ".js", ".json", ".py", ".txt", ".typed", ".yml"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_keeps_to_its_size(wheel):
    assert wheel.stat().st_size < MOST_BYTES


def test_the_wheel_holds_every_module_and_the_page(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    static = "klmonitor/dashboard/static/"
    page = {f"{static}{name}" for name in ("index.html", "index.js", *STYLES, *SCRIPTS)}
    vendored = {name for name in page if "/vendor/" in name and not (ROOT / name).exists()}
    assert page - vendored <= names  # without npm there is no uPlot
    ours = {
        path.relative_to(root).as_posix()
        for root in (ROOT, ROOT / "integrations")
        for path in root.glob("klmonitor*/**/*.py")
    }
    assert ours == {name for name in names if name.endswith(".py")}
    assert {Path(name).suffix for name in names} <= SUFFIXES
