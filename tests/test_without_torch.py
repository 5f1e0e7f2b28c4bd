"""What only reads a run works where torch is not installed."""

from __future__ import annotations

import subprocess
import sys

import torch

from klmonitor import Monitor

READER = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "trl", "wandb", "tensorboard"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoTorch())

import klmonitor
from klmonitor.replay import replay
from klmonitor.cli import make_parser
from klmonitor.record import read_run

run = read_run(sys.argv[1])
assert [report.step for report in run.reports] == list(range(30))
assert "believe" in run.reports[-1].explain()
assert replay(run.reports) == [alert for alert in run.alerts if alert.phase != 'end']
assert run.reports[3].pairs["policy_ref"].k1.se > 0
assert klmonitor.backtest([0.01] * 60 + [1.0])
make_parser()
try:
    klmonitor.Monitor
except ModuleNotFoundError as error:
    assert error.name == "torch"
else:
    raise AssertionError("torch was imported")
"""


def test_a_run_is_read_explained_and_replayed(tmp_path):
    generator = torch.Generator().manual_seed(0)
    monitor = Monitor(tmp_path / "run")
    for step in range(30):
        q = -torch.rand(16, 32, generator=generator)
        scale = 0.05 if step < 28 else 1.0
        p = q + scale * torch.randn(16, 32, generator=generator)
        monitor.observe(policy=q, ref=p)
        monitor.step(step)
    monitor.close()
    done = subprocess.run(
        [sys.executable, "-c", READER, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
