"""Show a run live in the terminal: its last steps, alerts and notices."""

from __future__ import annotations

import argparse
import json
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from klmonitor.commands.inputs import refuse

if TYPE_CHECKING:
    from pathlib import Path

    from klmonitor.record.notices import Notice
    from klmonitor.report import Alert, Estimate, PairReport, Report, Row

NAME = "watch"
COLUMNS = ("step", "pair", "k1 ± se", "k2", "k3 ± se", "z", "outliers", "by one")
"""z: the spike score; outliers: tokens with d <= -2 / d >= 2; by one: dominated by few tokens."""
KEPT_EVENTS = 8


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run_dir", metavar="RUN", help="the run's directory")
    parser.add_argument("--rows", type=int, default=15, help="steps shown (default: 15)")
    parser.add_argument("--once", action="store_true", help="show it once and end")
    parser.add_argument("--json", action="store_true", help="print it once, as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Show until interrupted; 2 where there is no record."""
    from klmonitor.commands.inputs import one_record

    try:
        tail = Tail(one_record(args.run_dir), max(args.rows, 1))
        if args.json:
            print(json.dumps(tail.row()))
            return 0
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        return refuse(NAME, "needs rich: pip install 'klmonitor[cli]'")
    except (ValueError, OSError) as error:
        return refuse(NAME, error)
    if args.once:
        Console().print(tail.view())
        return 0
    with Live(tail.view(), auto_refresh=False) as live:
        while True:
            time.sleep(1.0)
            live.update(tail.view(), refresh=True)


class Tail:
    """The last steps, alerts and notices of a record that may still grow.

    Args:
        directory: of the record.
        rows: steps that are shown.
    """

    def __init__(self, directory: Path, rows: int) -> None:
        from klmonitor.record.live import LiveRecord

        self._directory = directory
        self._record = LiveRecord(directory)
        self._reports: deque[Report] = deque(maxlen=rows)
        self._found: deque[tuple[int, Alert | Notice]] = deque(maxlen=KEPT_EVENTS)

    # --- what the record hands over --------------------------------------------------------------
    def clear(self) -> None:
        """Forget everything."""
        self._reports.clear()
        self._found.clear()

    def cut(self, step: int, number: int) -> None:
        """Forget what was overwritten; what people said stays."""
        from klmonitor.record.live import PASSING

        while self._reports and self._reports[-1].step >= step:
            self._reports.pop()
        stays = [
            (own, one)
            for own, one in self._found
            if one.step < step or own >= number or (not _phase(one) and one.kind not in PASSING)
        ]
        self._found.clear()
        self._found.extend(stays)

    def add_row(self, row: Row) -> None:
        """A report; of a step that comes again the later one counts."""
        from klmonitor.record.rows import report_from_row

        if row["phase"] != "train":
            return
        while self._reports and self._reports[-1].step >= row["step"]:
            self._reports.pop()
        self._reports.append(report_from_row(row))

    def add_tokens(self, row: Row) -> None:
        """They are not shown."""

    def add_alert(self, alert: Alert, number: int) -> None:
        """An alert."""
        if alert.phase != "end":
            self._found.append((number, alert))

    def add_notice(self, notice: Notice, number: int) -> None:
        """A notice."""
        self._found.append((number, notice))

    # --- what is shown ---------------------------------------------------------------------------
    def look(self) -> None:
        """Take what came since."""
        self._record.poll(self)

    @property
    def events(self) -> list[Alert | Notice]:
        """The last alerts and notices, by step; of one step the notices first."""
        found = [one for _, one in self._found]
        return sorted(found, key=lambda one: (one.step, bool(_phase(one))))

    def row(self) -> Row:
        """The last steps and events as a JSON object."""
        from klmonitor.record.notices import notice_to_row
        from klmonitor.record.rows import alert_to_row, report_to_row
        from klmonitor.report import Alert

        self.look()
        return {
            "run": str(self._directory),
            "steps": [report_to_row(report) for report in self._reports],
            "events": [
                alert_to_row(one) if isinstance(one, Alert) else notice_to_row(one)
                for one in self.events
            ],
            "remarks": self._record.remarks,
        }

    def view(self) -> Any:
        """What there is by now, as a renderable of rich."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        from klmonitor.report import Alert
        from klmonitor.sinks.console import line
        from klmonitor.terminal import inert

        self.look()
        told = [a for a in self.events if isinstance(a, Alert) and not a.muted]
        alerted = {alert.step for alert in told}
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        for column in COLUMNS:
            table.add_column(column, no_wrap=True)
        for report in self._reports:
            style = "bold red" if report.step in alerted else ""
            for pair in report.pairs.values():
                table.add_row(*(Text(cell) for cell in cells(report.step, pair)), style=style)
        if not self._reports:
            table.add_row("none yet")
        colours = {"critical": "bold red", "warn": "yellow", "info": "dim"}
        styles = {id(alert): colours.get(alert.severity, "") for alert in told}
        events = [Text(line(one), style=styles.get(id(one), "dim")) for one in self.events]
        remarks = [Text(inert(remark), style="yellow") for remark in self._record.remarks]
        name = Text(inert(str(self._directory)), style="bold")
        return Group(name, table, *events, *remarks)


def _phase(one: Alert | Notice) -> str:
    """An alert's phase; a notice has none."""
    return getattr(one, "phase", "")


def cells(step: int, pair: PairReport) -> tuple[str, ...]:
    """A pair's numbers at a step, by `COLUMNS`, in 80 columns; k1 to k3 in nats per token."""
    dominated = [name for name in ("k1", "k3") if pair[f"dominance/{name}/level"] >= 1]
    outliers = (pair["outliers/k1"], pair["outliers/k3"])
    return (
        str(step),
        pair.name,
        _with_error(pair.k1),
        _short(pair.k2.mean),
        _with_error(pair.k3),
        f"{pair['spike/z']:.2g}",
        "/".join(f"{count:.0f}" if count < 1e3 else f"{count:.0e}" for count in outliers),
        ",".join(dominated),
    )


def _with_error(estimate: Estimate) -> str:
    return f"{_short(estimate.mean)} ±{estimate.se:.1g}"


def _short(value: float) -> str:
    """Four decimals where they say something, three digits elsewhere."""
    return f"{value:.4f}" if 1e-3 <= abs(value) < 10 or value == 0 else f"{value:.3g}"
