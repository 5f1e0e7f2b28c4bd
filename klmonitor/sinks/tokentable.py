"""Extreme tokens as a table for trackers: ids, log-probs, places; text only if it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from klmonitor.report import ExtremeToken, Report
from klmonitor.rows import recorded_tokens

COLUMNS = ("step", "pair", "tail", "d", "log q", "log p", "token id", "text", "prompt", "place")
TEXT = COLUMNS.index("text")

WithText = Callable[[Sequence[ExtremeToken]], Sequence[ExtremeToken]]
Annotate = Callable[[str], WithText]
"""Called with the phase of a step that is being closed; what it returns gives the step's extreme
tokens their text, at any time and on any thread."""


def shown_tokens(report: Report) -> list[ExtremeToken]:
    """The tokens worth a row: a few of each tail, all where they dominate or an alert opened."""
    alerted = {alert.pair for alert in report.alerts}
    return [
        token
        for pair in report.pairs.values()
        for token in recorded_tokens(pair, pair.name in alerted)
    ]


def token_rows(step: int, tokens: Iterable[ExtremeToken]) -> list[list[Any]]:
    """The tokens of a step as rows of `COLUMNS`; an id of -1 is unknown."""
    return [_row(step, token) for token in tokens]


def without_text(row: Sequence[Any]) -> list[Any]:
    """A row, or the columns, without the text."""
    return [*row[:TEXT], *row[TEXT + 1 :]]


def _row(step: int, token: ExtremeToken) -> list[Any]:
    numbers = (round(token.log_ratio, 4), round(token.log_q, 4), round(token.log_p, 4))
    prompt = "" if token.prompt_id is None else str(token.prompt_id)
    ids = -1 if token.token_id is None else token.token_id
    return [step, token.pair, token.tail, *numbers, ids, token.text or "", prompt, token.where]
