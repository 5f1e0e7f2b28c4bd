"""What trackers get besides numbers, before it takes a tracker's own form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from klmonitor.report import Report
from klmonitor.sinks.panels import HISTOGRAM

Heat = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""By metric: the tokens of each row of the page's heat map, and the rows' bounds, one more."""

RECORD_BYTES = 32 * 2**20
"""A longer record takes more than the seconds that closing may take: 0.07 s a MB."""
PAGE_BYTES = 16 * 2**20
"""A larger page is no help to the reader either."""
DETAILED_STEPS = 200
"""Steps with verdict and tokens, beside those of alerts and the worst: a tenth of a file's."""


def page_of(run_dir: Path) -> str:
    """The page of ``klmonitor report``, without any token's text.

    Raises:
        ValueError: it would take too long, or be too large; the message has the remedy.
        OSError: the record cannot be read.
    """
    from klmonitor.dashboard.document import document
    from klmonitor.dashboard.source import RecordSource

    remedy = f"write it with: klmonitor report {run_dir}"
    size = sum(file.stat().st_size for file in run_dir.glob("*.jsonl"))
    if size > RECORD_BYTES:
        raise ValueError(f"the record has {size / 1e6:.0f} MB; {remedy}")
    html = document(RecordSource([run_dir], tokens_text=False), DETAILED_STEPS)
    if len(html) > PAGE_BYTES:
        raise ValueError(f"it would have {len(html) / 1e6:.0f} MB; {remedy}")
    return html


def heat_of(report: Report) -> Heat:
    """Tokens by d on the rows of the page's heat map, the same rows every step."""
    from klmonitor.dashboard.heat import BOUNDS, tokens_by_row

    found = {}
    for name, pair in report.pairs.items():
        if pair.histogram:
            edges, counts = zip(*pair.histogram, strict=True)
            tokens = tokens_by_row(edges, counts)
            found[f"kl/{name}/{HISTOGRAM}"] = (tokens.tolist(), BOUNDS.tolist())
    return found
