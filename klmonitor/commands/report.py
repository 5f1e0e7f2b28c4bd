"""Write runs as one HTML file that opens from disk: panels, alerts, verdicts, a summary."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from klmonitor.commands.inputs import add_earlier, refuse

NAME = "report"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's directory")
    parser.add_argument(
        "-o",
        "--output",
        default="klmonitor-report.html",
        metavar="FILE",
        help="default: klmonitor-report.html",
    )
    parser.add_argument(
        "--token-text",
        action="store_true",
        help="put the text of extreme tokens into the file too (ids and positions always are); "
        "only you may read it then",
    )
    add_earlier(parser)
    parser.add_argument("--json", action="store_true", help="say what was written as a JSON object")


def run(args: argparse.Namespace) -> int:
    """Write the file; 0 once it is there, 2 where there is no record or it cannot be written."""
    from klmonitor.dashboard.document import document
    from klmonitor.dashboard.source import RecordSource
    from klmonitor.record.fresh import replaced
    from klmonitor.terminal import inert

    path = Path(args.output)
    try:
        source = RecordSource(args.runs, tokens_text=args.token_text, earlier=args.earlier)
        html = document(source).encode()
        with replaced(path, 0o600 if args.token_text else 0o666) as file:
            file.write(html)
    except (OSError, ValueError) as error:
        return refuse(NAME, error)
    remarks = {run.name: run.remarks for run in source.runs() if run.remarks}
    if args.json:
        runs = [run.name for run in source.runs()]
        print(json.dumps({"file": str(path), "bytes": len(html), "runs": runs, "remarks": remarks}))
        return 0
    for name, found in remarks.items():
        for remark in found:
            print(f"{inert(name)}: {inert(remark)}")
    print(f"{inert(str(path))} ({len(html) / 1e6:.1f} MB)")
    return 0
