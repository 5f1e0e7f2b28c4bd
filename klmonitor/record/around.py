"""What stood around the extreme tokens of an alerted step: a field of its row of tokens.

It is private as the text of tokens is: ids in a row are the text, to whom has the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from klmonitor.numbers.neighbours import Neighbours
from klmonitor.numbers.places import Places
from klmonitor.record.rows import encode_row, finite_or_none, token_to_row
from klmonitor.report import ExtremeToken, Row

AROUND, PLACES = "around", "places"
AROUND_BYTES = 14 * 1024
"""What it may take of the row of a step, all pairs together; with the means by place, which come at
the same steps, a step with an alert takes 16 KB more than another."""
MOST_PLACES = 256
"""Places that a reader looks at; ours have 33."""

Words = Callable[[Sequence[int]], Sequence[str]]
"""The text of each of some tokens, by their ids."""


def around_rows(
    tokens: Sequence[ExtremeToken],
    tails: Sequence[Sequence[Neighbours]],
    words: Words | None = None,
) -> list[Row]:
    """As many as `AROUND_BYTES` hold, the most extreme of every tail first.

    Args:
        tokens: the row's tokens.
        tails: of each pair and tail the neighbours of its tokens, in order.
        words: gives ids their text.
    """
    places = {_place(token): at for at, token in enumerate(tokens)}
    found: list[Row] = []
    left = AROUND_BYTES - len(f',"{AROUND}":[]')
    for some in zip_longest(*tails):
        for one in some:
            if one is None or _place(one.token) not in places:
                continue
            row = _row(places[_place(one.token)], one, words)
            left -= len(encode_row(row))  # its line's end is the comma's room
            if left < 0:
                return found
            found.append(row)
    return found


def _row(at: int, one: Neighbours, words: Words | None) -> Row:
    row: Row = {
        "token": at,
        "first": one.first,
        "ids": list(one.ids),
        "log_q": [None if x is None else finite_or_none(_short(x)) for x in one.log_q],
        "log_p": [None if x is None else finite_or_none(_short(x)) for x in one.log_p],
    }
    known = [token for token in one.ids if token is not None]
    if words is not None and known:
        found = words(known)
        if len(found) == len(known):
            text = iter(found)
            row["text"] = [None if token is None else next(text) for token in one.ids]
    return row


def _short(value: float) -> float:
    """As short as the same float32 can be written."""
    return float(str(np.float32(value)))


def _place(token: ExtremeToken) -> tuple[Any, ...]:
    return (
        token.pair,
        token.tail,
        token.worker or token.rank,
        token.micro_batch,
        token.sequence,
        token.position,
    )


def neighbours_from_rows(tokens: Sequence[ExtremeToken], rows: Sequence[Row]) -> list[Neighbours]:
    """The inverse of `around_rows`, of rows that `klmonitor.record.checks` let through."""
    return [
        Neighbours(
            tokens[row["token"]],
            row["first"],
            ids=tuple(row["ids"]),
            log_q=tuple(row["log_q"]),
            log_p=tuple(row["log_p"]),
            text=tuple(row["text"]) if "text" in row else None,
        )
        for row in rows
    ]


def encode_tokens(
    step: int,
    tokens: Sequence[ExtremeToken],
    phase: str,
    around: Sequence[Row],
    places: Mapping[str, Places],
) -> bytes:
    """The row of a step's extreme tokens as a line, with what stood around some of them.

    Args:
        step: which.
        tokens: of all pairs.
        phase: ``"train"`` or ``"eval"``.
        around: of `around_rows`.
        places: pair -> mean |d| by place.
    """
    beside: Row = {AROUND: list(around)} if around else {}
    beside |= {PLACES: dict(places)} if places else {}
    rows = [token_to_row(token) for token in tokens]
    return encode_row({"step": step, "phase": phase, "tokens": rows, **beside})
