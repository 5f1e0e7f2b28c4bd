"""Read rollouts that a trainer dumped into a run directory, as if klmonitor had watched the run.

PATH: JSON lines (.jsonl, .gz, .zst), parquet, .npz, .safetensors, .pt, .pkl (with --trust),
directories and patterns of them. Dumps of NeMo-RL, prime-rl, slime, miles and SkyRL are known; in
any other, name the columns that hold log-probs of the sampled tokens.
"""

from __future__ import annotations

import argparse
from importlib import import_module

NAME = "read"
ALIASES = ("analyze",)
ROLES = {
    "policy": "log-probs under the trainer's current weights",
    "old": "under its weights before this update",
    "rollout": "by the engine that sampled",
    "ref": "under the frozen reference",
    "mask": "1 where a token counts",
    "entropy": "of the trainer's policy at each token, nats",
    "tokens": "vocabulary ids of the sampled tokens",
    "prompt": "which prompt a sequence answers",
    "group": "its environment or data set, reported apart",
    "step": "the optimizer step (default: the number in a file's name)",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="files, directories, patterns")
    parser.add_argument(
        "-o", "--output", default="klmonitor-read", metavar="RUN", help="default: klmonitor-read"
    )
    for role, text in ROLES.items():
        parser.add_argument(f"--{role}", metavar="COL", help=f"column: {text}")
    parser.add_argument(
        "--layout", help="nemo-rl, prime-rl, slime, skyrl or columns (default: found out)"
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="load pickles, which runs whatever code they hold: only files of your own",
    )
    parser.add_argument("--rules", metavar="FILE", help="rules as TOML or JSON")
    parser.add_argument("--preset", help="default, quiet or sensitive (default: default)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no verdict")


def run(args: argparse.Namespace) -> int:
    """Read; 2 where nothing is readable."""
    return int(import_module("klmonitor_dumps.command").run(args))  # which needs torch
