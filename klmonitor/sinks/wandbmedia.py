"""What wandb gets besides numbers: histograms of d, extreme tokens as a table, the page."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from klmonitor.report import ExtremeToken, Report
from klmonitor.sinks.panels import HISTOGRAM, REPORT, TOKENS
from klmonitor.sinks.tokentable import COLUMNS, token_rows, without_text

RECORD_BYTES = 32 * 2**20
"""A longer record takes more than the seconds that closing may take: 0.07 s a MB."""
PAGE_BYTES = 16 * 2**20
"""A larger page is no help to the reader either."""
DETAILED_STEPS = 200
"""Steps with verdict and tokens, beside those of alerts and the worst: a tenth of a file's."""


def warm_up() -> None:
    """Import what wandb imports at its first media, half a second's worth, before that is due."""
    with suppress(ImportError):
        import_module("pandas")


def histograms(report: Report) -> dict[str, Any]:
    """``wandb.Histogram`` of d by pair, on the rows of the page's heat map, the same every step."""
    import wandb

    from klmonitor.dashboard.heat import BOUNDS, tokens_by_row

    found = {}
    for name, pair in report.pairs.items():
        if pair.histogram:
            edges, counts = zip(*pair.histogram, strict=True)
            tokens = tokens_by_row(edges, counts)
            found[f"kl/{name}/{HISTOGRAM}"] = wandb.Histogram(
                np_histogram=(tokens.tolist(), BOUNDS.tolist())
            )
    return found


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

    from klmonitor.dashboard.document import document
    from klmonitor.dashboard.source import RecordSource

    remedy = f"write it with: klmonitor report {run_dir}"
    size = sum(file.stat().st_size for file in run_dir.glob("*.jsonl"))
    if size > RECORD_BYTES:
        raise ValueError(f"the record has {size / 1e6:.0f} MB; {remedy}")
    html = document(RecordSource([run_dir], tokens_text=False), DETAILED_STEPS)
    if len(html) > PAGE_BYTES:
        raise ValueError(f"it would have {len(html) / 1e6:.0f} MB; {remedy}")
    return {REPORT: wandb.Html(html, inject=False)}  # its policy allows no foreign style
