"""What a step found, as plain host data: nothing here needs torch, so a laptop can read it.

A `Report` holds one `PairReport` per pair that had tokens, the extreme tokens of both tails and
the alerts that this step opened. All numbers of a pair live in one flat mapping, keyed by the
metric names of `klmonitor.numbers.metrics`; the attributes beside it are views of it. "Nothing
counted" is nan, never 0.
"""

from typing import Any

from klmonitor.report.alert import Alert
from klmonitor.report.markup import text_html
from klmonitor.report.step import (
    KNOWN,
    Cause,
    Estimate,
    Health,
    PairReport,
    Report,
    Verdict,
)
from klmonitor.report.tokens import ExtremeToken, ExtremeTokens, Later
from klmonitor.report.values import Part, Values, joined, of_groups, possible

Row = dict[str, Any]
"""A JSON object: what one line of a record file holds."""

__all__ = [
    "KNOWN",
    "Alert",
    "Cause",
    "Estimate",
    "ExtremeToken",
    "ExtremeTokens",
    "Health",
    "Later",
    "PairReport",
    "Part",
    "Report",
    "Row",
    "Values",
    "Verdict",
    "joined",
    "of_groups",
    "possible",
    "text_html",
]
