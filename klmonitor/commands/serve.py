"""Show runs live in the browser, on this machine only."""

from __future__ import annotations

import argparse

from klmonitor.commands.inputs import add_earlier, refuse

NAME = "serve"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's directory")
    parser.add_argument("--port", type=int, default=6160, help="default: 6160; 0: a free one")
    parser.add_argument(
        "--token-text",
        action="store_true",
        help="show the text of extreme tokens; then the address holds a secret, new at each start",
    )
    add_earlier(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted; 2 where there is no record or the port is taken."""
    from klmonitor.dashboard.server import PageServer
    from klmonitor.dashboard.source import RecordSource

    try:
        source = RecordSource(args.runs, tokens_text=args.token_text, earlier=args.earlier)
    except OSError as error:
        return refuse(NAME, error)
    try:
        server = PageServer(source, args.port, secret=args.token_text)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        return refuse(NAME, f"port {args.port}: {why}; give another one, --port 0 takes a free one")
    for run in source.runs():  # a long record is read once, before anybody waits for the page
        run.data()
    print(f"{server.url}  (ctrl-c ends it)", flush=True)
    with server:
        server.serve_forever()
    return 0
