"""Send a test alert to each target, and say which of them took it."""

from __future__ import annotations

import argparse
import json

from klmonitor.commands.inputs import refuse

NAME = "notify-test"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "targets",
        nargs="+",
        metavar="TARGET",
        help="env:NAME or file:/path, as in notify=[...]; never the address itself",
    )
    parser.add_argument(
        "--timeout", type=float, default=10.0, help="seconds for each target (default: 10)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def run(args: argparse.Namespace) -> int:
    """Send; 0 if every target took it, 1 if one did not, 2 where one cannot be used."""
    from klmonitor.notify import Notifier, parse_targets
    from klmonitor.notify.message import make_message
    from klmonitor.report import Alert

    alert = Alert(
        step=0,
        kind="test",
        severity="critical",
        pair=None,
        message="this is a test of klmonitor's delivery; nothing is wrong",
        action="nothing",
        source="klmonitor notify-test",
    )
    try:
        targets = parse_targets([{"to": to, "timeout": args.timeout} for to in args.targets])
        notifier = Notifier(targets)
    except (ValueError, ImportError, OSError) as error:
        return refuse(NAME, error)
    failed, found = 0, []
    for lane in notifier.lanes:
        answer = lane.courier.send(make_message(alert))
        failed += not answer.ok
        found.append({"target": lane.target.name, "delivered": answer.ok, "why": answer.why})
        if not args.json:
            print(f"{lane.target.name}: {'delivered' if answer.ok else f'failed: {answer.why}'}")
    if args.json:
        print(json.dumps({"targets": found}))
    notifier.close(0.0)
    return int(failed > 0)
