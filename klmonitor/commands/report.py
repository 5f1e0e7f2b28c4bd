"""Write runs as one HTML file that opens from disk: panels, alerts, verdicts, a summary."""

from __future__ import annotations

import argparse
from pathlib import Path

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
        help="put the text of extreme tokens into the file too (ids and positions always are)",
    )


def run(args: argparse.Namespace) -> int:
    """Write the file; 0 once it is there."""
    from klmonitor.dashboard.document import document
    from klmonitor.dashboard.source import RecordSource

    path = Path(args.output)
    try:
        html = document(RecordSource(args.runs, tokens_text=args.token_text))
        path.write_text(html, encoding="utf-8")
    except OSError as error:
        raise SystemExit(f"klmonitor report: {error}") from None
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0
