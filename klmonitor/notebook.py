"""HTML for notebooks: a report as a table of its estimators, text as it is; everything escaped."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from klmonitor.report import Report

ESTIMATORS = ("k1", "k2", "k3")
COLUMNS = ("pair", *ESTIMATORS, "tokens", "outliers k1 / k3", "dominated")
LEVELS = ("no", "warn", "severe")


def report_html(report: Report) -> str:
    """The numbers of a step, its alerts, and the verdict.

    Means are in nats per token, with their standard errors.
    """
    rows = []
    for name, pair in report.pairs.items():
        means = [f"{pair[f'{k}/mean']:.4g} ± {pair[f'{k}/se']:.2g}" for k in ESTIMATORS]
        outliers = f"{pair['outliers/k1']:.0f} / {pair['outliers/k3']:.0f}"
        level = pair["dominance/level"]
        word = "" if math.isnan(level) else LEVELS[int(level)]
        rows.append((name, *means, f"{pair.tokens:.0f}", outliers, word))
    alerts = "".join(text_html(alert.text()) for alert in report.alerts)
    steps = f"step {report.step}"
    if report.first_step not in (0, report.step):
        steps = f"steps {report.first_step} to {report.step}"
    head = f"<b>KL at {steps}</b>" + (" (evaluation)" if report.phase == "eval" else "")
    return f"<div>{head}{table_html(COLUMNS, rows)}{alerts}{text_html(report.explain())}</div>"


def table_html(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain table."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def text_html(text: str) -> str:
    """Text with its line breaks."""
    return f"<pre>{html.escape(text)}</pre>"
