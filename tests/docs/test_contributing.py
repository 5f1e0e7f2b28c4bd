"""The recipes of docs/contributing.md, each carried out on a copy of the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
COPIED = ("klmonitor", "integrations", "tests", "docs", "benchmarks", "pyproject.toml")
FILES = ("README.md", "LICENSE", "hatch_build.py", "package.json", "package-lock.json")
WHERE = re.compile(r"^# (?P<file>[\w./]+)(, after: (?P<line>[^\n]+))?\n(?P<text>.*)", re.DOTALL)


def blocks(recipe):
    """(file, line after which, text) of each block of a recipe."""
    section = re.search(rf"^## {recipe}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    for block in re.findall(
        r"^```(?:python|toml)\n(.*?)^```", section[1], re.DOTALL | re.MULTILINE
    ):
        found = WHERE.match(block)
        assert found, f"a block of {recipe!r} does not say where it goes"
        yield found["file"], found["line"], found["text"]


@pytest.fixture
def scratch(tmp_path):
    """A copy of the repository, and how to run something in it."""
    ignore = shutil.ignore_patterns("__pycache__", "images", "data")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=ignore)
        else:
            shutil.copy(source, tmp_path)
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path)

    def run(*arguments):
        places = [tmp_path, tmp_path / "integrations", *sys.path]
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(str(place) for place in places if place),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    run.place = tmp_path
    return run


def carry_out(recipe, place):
    """Write what a recipe prints; the number of files that it touched."""
    touched = set()
    for file, line, text in blocks(recipe):
        path = place / file
        touched.add(file)
        if line is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            continue
        before = path.read_text(encoding="utf-8")
        (at,) = [m.end() for m in re.finditer(rf"^[ ]*{re.escape(line)}\n", before, re.MULTILINE)]
        path.write_text(before[:at] + text + before[at:], encoding="utf-8")
    return touched


def test_a_metric(scratch):
    assert len(carry_out("A metric", scratch.place)) == 2, "a row, and its reference"
    scratch("docs/tables.py")
    assert "`log_ratio/mean_abs`" in (scratch.place / "docs/metrics.md").read_text()
    scratch(
        "-m", "pytest", "-q", "tests/numbers/test_metrics.py", "-k", "equals_its_formula and plain"
    )
    said = scratch(
        "-c",
        "from klmonitor.sinks.panels import PANELS; print(PANELS[-1].title, PANELS[-1].metrics)",
    )
    assert said.strip() == "Size of d ('log_ratio/mean_abs',)"


def test_a_sink(scratch):
    assert len(carry_out("A sink", scratch.place)) == 2, "a module, and a line of the table"
    scratch(
        "-c",
        "import torch\n"
        "from klmonitor import Monitor\n"
        "monitor = Monitor('run', sinks=['lines'])\n"
        "monitor.observe(policy=torch.zeros(2, 4) - 1, ref=torch.zeros(2, 4) - 2)\n"
        "monitor.step(3)\n"
        "monitor.close()\n",
    )
    assert (
        (scratch.place / "run" / "lines.txt").read_text().startswith("3 {'kl/policy_ref/k1/mean'")
    )
    doctor = "from klmonitor.cli import main; main(['doctor'])"
    assert "  ok lines " in scratch("-c", doctor)
    scratch("docs/tables.py")
    assert '`"lines"`' in (scratch.place / "docs/delivery.md").read_text()


def test_a_rule(scratch):
    assert len(carry_out("A rule", scratch.place)) == 2, "a module, and a line of the table"
    said = scratch(
        "-c",
        "import torch\n"
        "from klmonitor import Monitor\n"
        "monitor = Monitor(rules={'one_sided': {'share': 0.002}})\n"
        "q = -torch.rand(32, 64)\n"
        "monitor.observe(policy=q, ref=q - 0.05)\n"
        "print(*(alert.text() for alert in monitor.step(0).alerts))\n",
    )
    assert "policy_ref: 0.0% of 2048 tokens have a negative k1" in said
    scratch("docs/tables.py")
    row = "| `one_sided` | yes | share 0.001, tokens 1000 | 50 | 1 |"
    assert row in (scratch.place / "docs/alerts.md").read_text()


ACME = """
import torch
from types import SimpleNamespace


class Trainer:
    output_dir, steps = "out", 0

    def loss(self, batch):
        return batch.log_probs.mean()

    def step(self):
        self.steps += 1

    def train(self):
        for _ in range(3):
            q = -torch.rand(4, 8)
            mask = torch.ones(4, 8)
            self.loss(SimpleNamespace(log_probs=q, ref_log_probs=q - 0.1, mask=mask))
            self.step()
"""


def test_a_trainer(scratch):
    """Found by its entry point, from an installed wheel."""
    assert len(carry_out("A trainer", scratch.place)) == 2, "a package, and a line in pyproject"
    (scratch.place / "docs" / "package.md").touch()
    scratch("-m", "hatchling", "build", "-t", "wheel", "-d", "dist")
    (wheel,) = (scratch.place / "dist").glob("*.whl")
    site = scratch.place / "site"
    scratch("-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel))
    (site / "acme.py").write_text(ACME)
    shutil.rmtree(scratch.place / "klmonitor")
    shutil.rmtree(scratch.place / "integrations")
    said = scratch(
        "-c",
        "import sys; sys.path.insert(0, 'site')\n"
        "import acme, klmonitor\n"
        "trainer = acme.Trainer()\n"
        "handle = klmonitor.attach(trainer)\n"
        "trainer.train()\n"
        "print(handle.describe())\n"
        "handle.detach()\n"
        "from klmonitor.record import read_run\n"
        "print([r.pairs['policy_ref'].tokens for r in read_run('out/klmonitor').reports])\n",
    )
    assert "klmonitor watches acme.Trainer" in said
    assert "policy  batch.log_probs (3 micro-batches so far)" in said
    assert "[32.0, 32.0, 32.0]" in said
