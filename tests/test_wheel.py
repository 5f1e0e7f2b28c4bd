"""What is installed: everything that runs, nothing that does not, in a small file."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from klmonitor.dashboard.assets import BUNDLE, PARTS, STYLES

ROOT = Path(__file__).parents[1]
MOST_BYTES = 300_000
OURS_ALONE = ("klmonitor/simulate", "klmonitor/testing", "klmonitor/docs.py")
SUFFIXES = {"", ".css", ".html", ".js", ".json", ".py", ".txt", ".typed", ".yml"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_is_small(wheel):
    assert wheel.stat().st_size < MOST_BYTES


def test_the_wheel_holds_what_runs_and_no_more(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    static = "klmonitor/dashboard/static/"
    assert {f"{static}{name}" for name in ("index.html", *STYLES)} <= names
    parts = {f"{static}{name}" for name in PARTS}
    assert f"{static}{BUNDLE}" in names or parts <= names  # without npm the parts
    assert not (f"{static}{BUNDLE}" in names and parts & names)
    tops = {name.partition("/")[0] for name in names}
    ours = {"klmonitor", "klmonitor_trl", "klmonitor_tensorboard"}
    assert {top for top in tops if not top.endswith(".dist-info")} == ours
    assert not {name for name in names if name.startswith(OURS_ALONE)}
    assert {Path(name).suffix for name in names} <= SUFFIXES
