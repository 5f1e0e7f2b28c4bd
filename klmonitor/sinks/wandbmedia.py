"""What wandb gets besides numbers: histograms of d, extreme tokens as a table, the page."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from klmonitor.report import ExtremeToken, Report
from klmonitor.sinks.media import heat_of, page_of
from klmonitor.sinks.panels import REPORT, TOKENS
from klmonitor.sinks.tokentable import COLUMNS, token_rows, without_text


def warm_up() -> None:
    """Import what wandb imports at its first media, half a second's worth, before that is due."""
    with suppress(ImportError):
        import_module("pandas")


def histograms(report: Report) -> dict[str, Any]:
    """``wandb.Histogram`` of d by pair, on the rows of the page's heat map, the same every step."""
    import wandb

    return {name: wandb.Histogram(np_histogram=both) for name, both in heat_of(report).items()}


def table(step: int, tokens: Sequence[ExtremeToken], text: bool) -> dict[str, Any]:
    """``wandb.Table`` of a step's extreme tokens; nothing where there are none."""
    import wandb

    rows, columns = token_rows(step, tokens), list(COLUMNS)
    if not rows:
        return {}
    if not text:
        rows, columns = [without_text(row) for row in rows], without_text(columns)
    return {TOKENS: wandb.Table(columns=columns, data=rows)}


def page(run_dir: Path) -> dict[str, Any]:
    """``wandb.Html`` of the run's page: that of ``klmonitor report``, without any token's text.

    Raises:
        ValueError: it would take too long, or be too large; the message has the remedy.
        OSError: the record cannot be read.
    """
    import wandb

    return {
        REPORT: wandb.Html(page_of(run_dir), inject=False)
    }  # its policy allows no foreign style
