"""Propose alert thresholds for a wanted rate of false alarms, from recorded runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from klmonitor.commands.inputs import add_runs, load_labels, load_runs, refuse
from klmonitor.terminal import inert

if TYPE_CHECKING:
    from klmonitor.replay.tuning import Proposal

NAME = "tune"
LISTED = 8


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
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def run(args: argparse.Namespace) -> int:
    """Replay until it is quiet enough; 1 where no threshold makes it so, 2 on bad input."""
    from klmonitor.commands.backtests import say_total
    from klmonitor.replay.tuning import tune
    from klmonitor.rules.file import rules_toml

    try:
        events = load_labels(args) if args.events else None
        runs = load_runs(args)
        found = tune(runs, args.rate, events, args.since)
        text = rules_toml(found.rules)
        if args.out:
            Path(args.out).write_text(text, encoding="utf-8")
    except (ValueError, OSError) as error:
        return refuse(NAME, error)
    notes = [f"read: {one.name}: {remark}" for one in runs for remark in one.remarks]
    notes += [] if args.events else [_assumption(found)]
    notes += [
        f"before, {found.rules['preset']}: {say_total(found.before)[0]}",
        f"after: {'; '.join(say_total(found.after))}",
    ]
    if not found.resolved:
        notes.append(
            f"{found.after.quiet_steps} steps are too few to tell {args.rate:g} per 10,000 steps "
            "from half or twice that: no threshold was lowered; tune again on more runs"
        )
    if not found.reached:
        notes.append(
            "not reached: what still rings has no threshold to raise, or one that would no longer "
            "tell an event; look at it"
        )
    if args.json:
        body = {"reached": found.reached, "resolved": found.resolved, "rules": found.rules}
        print(json.dumps({**body, "notes": notes, "file": args.out}, default=str))
        return 0 if found.reached else 1
    for note in notes:
        print(f"# {inert(note)}")
    print(f"# written to {args.out}" if args.out else f"\n{text}", end="\n" if args.out else "")
    return 0 if found.reached else 1


def _assumption(found: Proposal) -> str:
    """What is taken to have happened where nobody said it."""
    from klmonitor.replay.tuning import BEFORE, EVIDENT

    told = [f"{event.run} step {event.start}" for event in found.events]
    more = f" and {len(told) - LISTED} more" if len(told) > LISTED else ""
    return (
        "no --events: assumed that nothing happened but what is evident (critical, or k3 at "
        f"{EVIDENT:g} times the median of {BEFORE} steps before): "
        f"{', '.join(told[:LISTED]) or 'nothing'}{more}; no threshold was raised past that, and "
        "every other alert counts as false"
    )
