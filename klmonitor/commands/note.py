"""Put a dated note on a run's time line, beside its alerts; the run may be going on."""

from __future__ import annotations

import argparse
import time

from klmonitor.commands.inputs import append_row, one_record, refuse

NAME = "note"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run_dir", metavar="RUN", help="the run's directory")
    parser.add_argument("text", metavar="TEXT", help="what happened")
    parser.add_argument("--step", type=int, help="its step (default: the last one recorded)")


def run(args: argparse.Namespace) -> int:
    """Append it; 2 where there is no record, or it cannot be written."""
    from klmonitor.record import NOTES
    from klmonitor.record.notices import Notice, last_step, notice_to_row

    try:
        record = one_record(args.run_dir)
        step = last_step(record) if args.step is None else args.step
        notice = Notice(step, args.text, time=time.time())
        append_row(record / NOTES, notice_to_row(notice))
    except (ValueError, OSError) as error:
        return refuse(NAME, error)
    print(f"noted at step {step}")
    return 0
