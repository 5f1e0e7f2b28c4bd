"""Propose alert thresholds for a wanted rate of false alarms, from recorded runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from klmonitor.commands.inputs import add_runs, load_labels, load_runs

NAME = "tune"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_runs(parser)
    parser.add_argument(
        "--rate",
        type=float,
        default=10.0,
        help="false alarms per 10,000 steps that are acceptable (default: 10)",
    )
    parser.add_argument(
        "-o", "--out", metavar="FILE", help="write the rules there (default: print them)"
    )


def run(args: argparse.Namespace) -> int:
    """Replay until it is quiet enough; 1 where no threshold makes it so, 2 on bad input."""
    from klmonitor.commands.backtests import summary
    from klmonitor.replay.tuning import tune
    from klmonitor.rules.file import rules_toml

    try:
        found = tune(load_runs(args), args.rate, load_labels(args), args.since)
        text = rules_toml(found.rules)
        if args.out:
            Path(args.out).write_text(text, encoding="utf-8")
    except (ValueError, OSError) as error:
        sys.stderr.write(f"klmonitor tune: {error}\n")
        return 2
    notes = [
        f"before, {found.rules['preset']}: {summary(found.before)[0]}",
        f"after: {'; '.join(summary(found.after))}",
    ]
    if not found.resolved:
        notes.append(
            f"{found.after.quiet_steps} steps are too few to tell {args.rate:g} per 10,000 steps "
            "from half or twice that: no threshold was lowered; tune again on more runs"
        )
    if not found.reached:
        notes.append("not reached: what still rings has no threshold to raise; look at it")
    for note in notes:
        print(f"# {note}")
    print(f"# written to {args.out}" if args.out else f"\n{text}", end="\n" if args.out else "")
    return 0 if found.reached else 1
