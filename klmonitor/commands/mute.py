"""Mute a known condition: its alerts stay in the record, marked, and nobody is told.

A running monitor hears of it within a step or two. The last row about a kind and pair counts:
`--until` a step that is past ends a mute.
"""

from __future__ import annotations

import argparse

from klmonitor.commands.inputs import append_row, one_record, refuse

NAME = "mute"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run_dir", metavar="RUN", help="the run's directory")
    parser.add_argument(
        "kind", metavar="KIND", help="the kind of alert (a rule of your own: mute it in the rules)"
    )
    parser.add_argument("--pair", help="of this pair alone (default: of every pair)")
    parser.add_argument(
        "--until", type=int, metavar="STEP", help="the last muted step (default: for good)"
    )


def run(args: argparse.Namespace) -> int:
    """Append it; 2 where the kind or the pair is unknown, there is no record, or it cannot be."""
    from klmonitor.record import MUTES
    from klmonitor.rules.settings import describe_mute, parse_mutes
    from klmonitor.rules.table import RULES

    row = {"kind": args.kind, "pair": args.pair, "until_step": args.until}
    try:
        record = one_record(args.run_dir)
        parse_mutes([row], [rule.kind for rule in RULES])
        append_row(record / MUTES, row)
    except (ValueError, OSError) as error:
        return refuse(NAME, error)
    print(f"{describe_mute(row)}: recorded, and told to nobody")
    return 0
