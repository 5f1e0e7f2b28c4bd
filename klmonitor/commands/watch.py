"""Show a run live in the terminal: its last steps, alerts and notices."""

from __future__ import annotations

import argparse
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from klmonitor.record.notices import Notice
    from klmonitor.report import Alert, PairReport, Report

NAME = "watch"
COLUMNS = ("step", "pair", "k1 ± se", "k2", "k3 ± se", "spike z", "d<=-2", "d>=2", "dominated")
KEPT_EVENTS = 8


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run_dir", metavar="RUN", help="the run's directory")
    parser.add_argument("--rows", type=int, default=15, help="steps shown (default: 15)")
    parser.add_argument("--once", action="store_true", help="show it once and end")


def run(args: argparse.Namespace) -> int:
    """Show until interrupted."""
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        raise SystemExit("klmonitor watch: needs rich: pip install 'klmonitor[cli]'") from None
    from klmonitor.dashboard.source import find_records

    try:
        directory = find_records(Path(args.run_dir))[0]
    except FileNotFoundError as error:
        raise SystemExit(f"klmonitor watch: {error}") from None
    tail = Tail(directory, max(args.rows, 1))
    if args.once:
        Console().print(tail.view())
        return 0
    with Live(tail.view(), auto_refresh=False) as live:
        while True:
            time.sleep(1.0)
            live.update(tail.view(), refresh=True)


class Tail:
    """The last steps, alerts and notices of a record that may still grow."""

    def __init__(self, directory: Path, rows: int) -> None:
        from klmonitor.record import ALERTS, NOTES, STEPS
        from klmonitor.record.jsonl import LineReader
        from klmonitor.record.notices import notice_from_row
        from klmonitor.record.rows import alert_from_row, report_from_row

        self._directory = directory
        self._steps = LineReader(directory / STEPS, report_from_row)
        self._alerts = LineReader(directory / ALERTS, alert_from_row)
        self._reports: deque[Report] = deque(maxlen=rows)
        self._notices = LineReader(directory / NOTES, notice_from_row)
        self._found: deque[Alert | Notice] = deque(maxlen=KEPT_EVENTS)

    def view(self) -> Any:
        """What there is by now, as a renderable of rich."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        from klmonitor.report import Alert
        from klmonitor.sinks.console import line

        self._reports.extend(r for r in self._steps.poll() if r.phase == "train")
        opened = (alert for alert in self._alerts.poll() if alert.phase != "end")
        new: list[Alert | Notice] = [*self._notices.poll(), *opened]
        self._found.extend(sorted(new, key=lambda event: event.step))
        told = [a for a in self._found if isinstance(a, Alert) and not a.muted]
        alerted = {alert.step for alert in told}
        table = Table(*COLUMNS, box=None, pad_edge=False)
        for report in self._reports:
            style = "bold red" if report.step in alerted else ""
            for pair in report.pairs.values():
                table.add_row(*(Text(cell) for cell in cells(report.step, pair)), style=style)
        if not self._reports:
            table.add_row("none yet")
        colours = {"critical": "bold red", "warn": "yellow", "info": "dim"}
        styles = {id(alert): colours.get(alert.severity, "") for alert in told}
        events = [Text(line(one), style=styles.get(id(one), "dim")) for one in self._found]
        return Group(Text(str(self._directory), style="bold"), table, *events)


def cells(step: int, pair: PairReport) -> tuple[str, ...]:
    """A pair's numbers at a step, by `COLUMNS`; k1 to k3 in nats per token."""
    dominated = [name for name in ("k1", "k3") if pair[f"dominance/{name}/level"] >= 1]
    return (
        str(step),
        pair.name,
        f"{pair.k1.mean:.4f} ± {pair.k1.se:.4f}",
        f"{pair.k2.mean:.4f}",
        f"{pair.k3.mean:.4f} ± {pair.k3.se:.4f}",
        f"{pair['spike/z']:.1f}",
        f"{pair['outliers/k1']:.0f}",
        f"{pair['outliers/k3']:.0f}",
        ", ".join(dominated),
    )
