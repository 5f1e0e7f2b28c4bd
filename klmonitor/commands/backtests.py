"""Replay alert rules on recorded runs: which alerts, how many false ones, how late."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from klmonitor.commands.inputs import add_runs, chosen_rules, load_labels, load_runs, refuse
from klmonitor.terminal import inert

if TYPE_CHECKING:
    from klmonitor.replay.curve import Curve
    from klmonitor.replay.scoring import Tally

NAME = "backtest"
SEVERITIES = ("info", "warn", "critical")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_runs(parser)
    parser.add_argument("--rules", metavar="FILE", help="rules as TOML or JSON (rules.toml)")
    parser.add_argument("--preset", help="default, quiet or sensitive (default: default)")
    parser.add_argument(
        "--fail-on",
        choices=SEVERITIES,
        help="exit 1 where an alert of this severity or worse belongs to no labelled event",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def run(args: argparse.Namespace) -> int:
    """Replay and print; 1 where `--fail-on` says so, 2 where something cannot be read."""
    from klmonitor.replay import replay
    from klmonitor.replay.scoring import Tally, score

    try:
        rules = chosen_rules(args.rules, args.preset)
        events = load_labels(args)
        runs = load_runs(args)
    except (ValueError, OSError) as error:
        return refuse(NAME, error)
    scores = [score(one, replay(one.reports, rules), events, args.since) for one in runs]
    total = sum(scores, Tally())
    show = _print_json if args.json else _print_text
    show(runs, scores, total)
    if args.fail_on is None:
        return 0
    bad = SEVERITIES[SEVERITIES.index(args.fail_on) :]
    return int(any(alert.severity in bad for alert in total.false))


def _print_text(runs: Sequence[Curve], scores: Sequence[Tally], total: Tally) -> None:
    labelled = bool(total.delays)
    for one, found in zip(runs, scores, strict=True):
        print(f"{inert(one.name)}: {found.steps} steps, {_count(len(found.alerts), 'alert')}")
        for remark in one.remarks:
            print(f"  read: {inert(remark)}")
        for alert in found.alerts:
            note = "  (false alarm)" if labelled and alert in found.false else ""
            worse = " got worse" if alert.phase == "worse" else ""
            head = f"step {alert.step:<7} {alert.severity:8} {alert.kind}{worse}"
            print(f"  {inert(f'{head}: {alert.message}{note}')}")
    for line in say_total(total):
        print(line)


def say_total(total: Tally) -> list[str]:
    """What all runs together say."""
    noun = "false alarm" if total.delays else "alert"
    lines = [
        f"{_count(len(total.false), noun)} in {total.quiet_steps} steps"
        f"{' outside events' if total.delays else ''}: {total.rate:.3g} per 10,000 steps "
        f"(95 % bound {total.bound:.3g})"
    ]
    if total.delays:
        found = f"{len(total.found)} of {_count(len(total.delays), 'event')} found"
        delay = f", median delay {total.delay:g} steps" if total.found else ""
        lines.append(found + delay)
    return lines


def _print_json(runs: Sequence[Curve], scores: Sequence[Tally], total: Tally) -> None:
    from klmonitor.record.rows import alert_to_row

    body = {
        "runs": [
            {
                "run": one.name,
                **_numbers(found),
                "remarks": list(one.remarks),
                "alerts": [
                    {**alert_to_row(alert), "false_alarm": alert in found.false}
                    for alert in found.alerts
                ],
            }
            for one, found in zip(runs, scores, strict=True)
        ],
        "total": _numbers(total),
    }
    print(json.dumps(body, indent=1, allow_nan=False))


def _numbers(found: Tally) -> dict[str, Any]:
    return {
        "steps": found.steps,
        "false_alarms": len(found.false),
        "per_10k_steps": _finite(found.rate),
        "bound_95": _finite(found.bound),
        "events": len(found.delays),
        "delays": list(found.delays),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
