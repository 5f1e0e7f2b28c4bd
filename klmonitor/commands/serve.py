"""Show runs live in the browser, on this machine only."""

from __future__ import annotations

import argparse

NAME = "serve"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's directory")
    parser.add_argument("--port", type=int, default=6160, help="default: 6160; 0: a free one")


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted."""
    from klmonitor.dashboard.server import PageServer
    from klmonitor.dashboard.source import RecordSource

    try:
        source = RecordSource(args.runs)
        server = PageServer(source, args.port)
    except (OSError, OverflowError) as error:
        raise SystemExit(f"klmonitor serve: {error}") from None
    source.runs()  # a long record is read once, before anybody waits for the page
    print(f"{server.url}  (ctrl-c ends it)", flush=True)
    with server:
        server.serve_forever()
    return 0
