"""Explain a step of a run: the verdict, why, alerts, causes, the receipt, the extreme tokens.

Without --step the worst one: where the gravest alert was told, else the highest spike score.
"""

from __future__ import annotations

import argparse
import json
import sys

from klmonitor.commands.inputs import one_record

NAME = "explain"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run_dir", metavar="RUN", help="the run's directory")
    parser.add_argument("--step", type=int, help="default: the worst one")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def run(args: argparse.Namespace) -> int:
    """Print; 2 where there is no such step."""
    from klmonitor.dashboard.worst import chosen_step, examined, in_words, raised_at
    from klmonitor.record import read_run

    try:
        record = read_run(one_record(args.run_dir))
        report, why = chosen_step(record, args.step)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"klmonitor explain: {error}\n")
        return 2
    still = raised_at(record, report)
    if args.json:
        body = examined(report, why, still) | {"remarks": list(record.remarks)}
        print(json.dumps(body, indent=1, allow_nan=False))
    else:
        print("\n".join([in_words(report, why, still), *record.remarks]))
    return 0
