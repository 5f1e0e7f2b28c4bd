"""The table that grows while the demo trains: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections import deque
from typing import Any, Protocol

from klmonitor.report import Estimate, Report

COLUMNS = ("step", "k1 ± se", "k2", "k3 ± se", "sd k1", "sd k3", "d<=-2", "d>=2", "")
WIDTHS = (5, 17, 9, 17, 8, 8, 6, 6, 0)
KEPT_ROWS = 12
PAIR = "policy_ref"


class Screen(Protocol):
    """Where the demo's steps are shown."""

    def show(self, report: Report) -> None:
        """Add a step."""

    def close(self) -> None:
        """The last step has been shown."""


def make_screen(steps: int) -> Screen:
    """A live table if standard output is a terminal and rich is there, else plain lines."""
    if not sys.stdout.isatty():
        return PlainScreen()
    try:
        return LiveScreen(steps)
    except ImportError:
        return PlainScreen()


def cells(report: Report) -> tuple[str, ...]:
    """A step's numbers, by `COLUMNS`; k1 to k3 in nats per token."""
    pair = report.pairs.get(PAIR)
    if pair is None:
        return (str(report.step), *[""] * (len(COLUMNS) - 1))
    found = ", ".join(dict.fromkeys(alert.kind for alert in report.alerts))
    return (
        str(report.step),
        _with_error(pair.k1),
        f"{pair.k2.mean:.4f}",
        _with_error(pair.k3),
        f"{pair.k1.var**0.5:.3g}",
        f"{pair.k3.var**0.5:.3g}",
        f"{pair['outliers/k1']:.0f}",
        f"{pair['outliers/k3']:.0f}",
        found and f"<- {found}",
    )


def _with_error(estimate: Estimate) -> str:
    return f"{estimate.mean:.4f} ± {estimate.se:.4f}"


class PlainScreen:
    """A line for every tenth step and for every step with an alert."""

    def __init__(self) -> None:
        """Nothing printed yet."""
        self._headed = False

    def show(self, report: Report) -> None:
        """Print a line, if it is this step's turn."""
        if not self._headed:
            self._headed = True
            self._print(COLUMNS)
        if report.alerts or report.step % 10 == 0 or report.step == 1:
            self._print(cells(report))

    def close(self) -> None:
        """Nothing is left to do."""

    @staticmethod
    def _print(row: tuple[str, ...]) -> None:
        print(
            " ".join(f"{cell:>{width}}" for cell, width in zip(row, WIDTHS, strict=True)).rstrip(),
            flush=True,
        )


class LiveScreen:
    """A rich table of the last steps under a progress bar."""

    def __init__(self, steps: int) -> None:
        """Take over the terminal's last lines.

        Raises:
            ImportError: rich is not installed.
        """
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._rows: deque[tuple[str, ...]] = deque(maxlen=KEPT_ROWS)
        self._alerts = 0
        self._bar = Progress(
            TextColumn("GRPO"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}")
        )
        self._task = self._bar.add_task("", total=steps)
        self._live = Live(self._render(), refresh_per_second=8)
        self._live.start()

    def show(self, report: Report) -> None:
        """Add a row."""
        self._rows.append(cells(report))
        self._alerts += len(report.alerts)
        self._bar.update(self._task, advance=1, description=f"{self._alerts} alerts")
        self._live.update(self._render())

    def close(self) -> None:
        """Give the terminal back."""
        self._live.stop()

    def _render(self) -> Any:
        from rich.console import Group
        from rich.table import Table

        table = Table(*COLUMNS, box=None, pad_edge=False)
        for column in table.columns[:-1]:
            column.justify = "right"
        for row in self._rows:
            table.add_row(*row, style="bold red" if row[-1] else "")
        return Group(self._bar, table)
