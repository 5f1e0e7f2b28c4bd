"""Say where runs are: level, open alerts, causes, errors, what to do; as JSON for programs.

Exit status: 0 fine, 10 a warning is open or a rise never came back, 11 something critical is open,
2 nothing is readable.
"""

from __future__ import annotations

import argparse
import json
import sys

NAME = "status"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("runs", nargs="*", metavar="RUN", help="a run's directory, or of several")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument(
        "--schema", action="store_true", help="print the JSON Schema of that object, and end"
    )


def run(args: argparse.Namespace) -> int:
    """Print; the level of the worst run as exit status."""
    from klmonitor.dashboard.standing import in_words, standing
    from klmonitor.dashboard.statusschema import STATUS

    if args.schema:
        print(json.dumps(STATUS, indent=1))
        return 0
    if not args.runs:
        sys.stderr.write("klmonitor status: give a run's directory\n")
        return 2
    body = standing(args.runs)
    print(json.dumps(body, indent=1, allow_nan=False) if args.json else in_words(body))
    return int(body["exit"])
