"""Three steps, the last far from the reference, to one sink; what was to arrive is printed.

python tests/sinks/tracked_run.py trackio|mlflow|swanlab
"""

from __future__ import annotations

import json
import sys

import torch

from klmonitor import Monitor
from klmonitor.sinks import select


def main(name: str) -> None:
    """Run it in the working directory."""
    monitor = Monitor("run", sinks=[name])
    due, alerts = {}, []
    for step in (1, 2, 3):
        generator = torch.Generator().manual_seed(step)
        q = -1 - torch.rand(16, 32, generator=generator)
        d = torch.randn(16, 32, generator=generator) * 0.05 - 5.0 * (step == 3)
        monitor.observe(policy=q, ref=q + d, prompt_ids=torch.arange(16) // 2)
        report = monitor.step(step)
        due[step] = select("core", report)
        alerts += [[alert.kind, alert.text()] for alert in report.told.alerts]
    monitor.close()
    print("\n" + json.dumps({"due": due, "alerts": alerts}))


if __name__ == "__main__":
    main(sys.argv[1])
