"""Train a tiny model with TRL's GRPO on this CPU, and watch its KL spike."""

from __future__ import annotations

import argparse
from importlib.metadata import entry_points
from typing import Any

NAME = "demo"
DEMOS, TRAINER = "klmonitor.demos", "trl"
"""The group of entry points in which trainers' packages name their demo, and the one that runs."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    _demo().configure(parser)


def run(args: argparse.Namespace) -> int:
    """Run it; 0 if what the scenario does was found."""
    return int(_demo().run(args))


def _demo() -> Any:
    return entry_points(group=DEMOS)[TRAINER].load()
