"""Extreme tokens as a table for trackers: ids, log-probs, places; text only if it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from klmonitor.report import ExtremeToken

COLUMNS = ("step", "pair", "tail", "d", "log q", "log p", "token id", "text", "prompt", "place")
TEXT = COLUMNS.index("text")

Annotate = Callable[[Sequence[ExtremeToken], str], Sequence[ExtremeToken]]
"""Gives extreme tokens, seen in a phase, their text: at once, or when what it returns is looked at,
which may be later and on another thread."""


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
