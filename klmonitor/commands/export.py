"""Export a run's numbers, every metric of every step, as a parquet table for other programs.

`klmonitor backtest` and `klmonitor tune` read the table too.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from klmonitor.commands.inputs import one_record

NAME = "export"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run_dir", metavar="RUN", help="the run's directory")
    parser.add_argument("--parquet", required=True, metavar="FILE", help="the table")


def run(args: argparse.Namespace) -> int:
    """Write it; 2 where there is nothing to write, or it cannot be."""
    from klmonitor.record import read_run
    from klmonitor.replay.parquet import write_parquet

    try:
        count = write_parquet(read_run(one_record(args.run_dir)).reports, args.parquet)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"klmonitor export: {error}\n")
        return 2
    size = Path(args.parquet).stat().st_size
    print(f"{args.parquet}: {count} reports ({size / 1e6:.1f} MB)")
    return 0
