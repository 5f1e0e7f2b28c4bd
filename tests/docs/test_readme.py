"""The README's code runs as it stands there, and the names that it uses exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import klmonitor
from klmonitor.numbers.metrics import CORE

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_loop_runs_as_printed(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    (loop,) = [block for block in BLOCKS if "Monitor(" in block]
    exec(compile(loop, "README.md", "exec"), {})
    assert "KL(policy || ref) over 1,024 tokens" in capsys.readouterr().out
    assert (tmp_path / "runs/math/steps.jsonl").read_text().count("\n") == 3
    assert list((tmp_path / "runs/math/tensorboard").glob("events*"))


def test_the_trainer_example_compiles_and_uses_public_names():
    (example,) = [block for block in BLOCKS if "attach(" in block]
    compile(example, "README.md", "exec")
    for name in re.findall(r"klmonitor\.(\w+)\(", example):
        assert name in klmonitor.__all__
    assert {"monitor", "detach", "describe"} <= set(klmonitor.Handle.__dataclass_fields__)


def test_the_table_names_exactly_the_core_metrics():
    section = README.split("## What you get")[1].split("All units")[0]
    named = {
        name
        for row in section.splitlines()
        if row.startswith("| `")
        for name in re.findall(r"`([\w/]+)`", row.split("|")[1])
    }
    assert named == CORE


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((docs/[^)#]+)", README))))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()
