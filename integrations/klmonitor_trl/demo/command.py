"""What ``klmonitor demo`` runs: the arguments of the demo, and the demo."""

from __future__ import annotations

import argparse
import importlib.util

from klmonitor.commands.inputs import refuse
from klmonitor_trl.demo.scenarios import SCENARIOS

NEEDED = ("trl", "transformers", "datasets", "tokenizers")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--scenario",
        choices=SCENARIOS,
        default="spike",
        help="; ".join(f"{name}: {one.help}" for name, one in SCENARIOS.items())
        + " (default: spike)",
    )
    parser.add_argument("--steps", type=int, default=80, help="optimizer steps (default: 80)")
    parser.add_argument(
        "--out", default="klmonitor-demo", help="where runs go (default: ./klmonitor-demo)"
    )


def run(args: argparse.Namespace) -> int:
    """Run it; 0 if what the scenario does was found, 1 if not, 2 where it cannot run."""
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        return refuse("demo", f"needs {', '.join(absent)}: pip install 'klmonitor[all]'")
    from klmonitor_trl.demo.run import run_demo

    try:
        return run_demo(args.scenario, args.steps, args.out)
    except (ValueError, OSError) as error:
        return refuse("demo", error)
