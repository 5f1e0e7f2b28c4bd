"""A pytest plugin: each test's outcome to a file, and klmonitor attached to the trainers if asked.

``TRL_SUITE_RESULTS`` names the file. With ``TRL_SUITE_ATTACH=1`` every GRPO or RLOO trainer that a
test builds is watched from the end of its ``__init__`` on, with the options that `attach` has by
default.
"""

from __future__ import annotations

import functools
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from trl.trainer import base_config

import klmonitor

ATTACH = os.environ.get("TRL_SUITE_ATTACH") == "1"
outcomes: dict[str, str] = {}
reasons: dict[str, str] = {}
watched: list[Any] = []
reports: list[Any] = []
refused: list[str] = []
counts: Counter[str] = Counter()


def pytest_configure() -> None:
    """Wrap the trainers once, before any test module is imported."""
    if not torch.cuda.is_available():
        use_cpu(base_config._BaseConfig)
    if ATTACH:
        for trainer in (trl.GRPOTrainer, trl.RLOOTrainer):
            watch_all(trainer)


def use_cpu(config: Any) -> None:
    """TRL's bf16 default is refused on a CPU that was not asked for; newer suites ask too."""
    original = config.__post_init__

    @functools.wraps(original)
    def post_init(self: Any) -> None:
        self.use_cpu = True
        original(self)

    config.__post_init__ = post_init


def watch_all(trainer: Any) -> None:
    """Attach klmonitor to every instance of a trainer."""
    original = trainer.__init__

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        try:
            watched.append(klmonitor.attach(self, sinks=[reports.append]).monitor)
        except Exception as error:
            refused.append(f"{type(self).__name__}: {error}")
            raise

    trainer.__init__ = init


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep the worst outcome of a test's phases, and why it was not a pass."""
    expected = hasattr(report, "wasxfail")
    outcome = {"skipped": "xfailed", "passed": "xpassed"}.get(report.outcome, "failed")
    outcome = outcome if expected else report.outcome
    if report.when == "call" or outcome != "passed":
        outcomes[report.nodeid] = outcome
        if outcome != "passed":
            reasons[report.nodeid] = why(report)


def pytest_runtest_teardown() -> None:
    """Count what a test's trainers reported, and let them go."""
    counts["trainers"] += len(watched)
    counts["errors"] += sum(monitor.errors for monitor in watched)
    counts["steps"] += len(reports)
    counts["steps with a pair"] += sum(bool(report.pairs) for report in reports)
    watched.clear()
    reports.clear()


def why(report: pytest.TestReport) -> str:
    """One line: an exception's, or the reason to skip."""
    if hasattr(report, "wasxfail"):
        return str(report.wasxfail)
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash else report.longrepr).partition("\n")[0]


def pytest_sessionfinish() -> None:
    """Write what happened."""
    results = {"outcomes": outcomes, "reasons": reasons, "counts": counts, "refused": refused}
    Path(os.environ["TRL_SUITE_RESULTS"]).write_text(json.dumps(results, indent=1))
