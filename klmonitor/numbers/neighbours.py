"""What stood around an extreme token, as host data: for the record of a step with an alert."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from klmonitor.numbers.places import Places
from klmonitor.report import ExtremeToken

FIRST_ID = 2
"""What a place holds is 0 where no counted token of the sequence is, 1 one of unknown id, else
`FIRST_ID` more than its id (`klmonitor.summary.around`)."""


@dataclass(frozen=True)
class Neighbours:
    """The tokens before and after an extreme one, in its sequence; those that count.

    Attributes:
        token: the extreme token.
        first: place of the first of the others, counted from it; -16 at the least, 0 at the most.
        ids: vocabulary ids from there on; None: unknown, or no token that counts.
        log_q: log-probs under q, nats, float32; None: no token that counts, or no number.
        log_p: the same under p.
        text: the decoded tokens; None unless an adapter decodes and the setting allows it.
    """

    token: ExtremeToken
    first: int
    ids: tuple[int | None, ...]
    log_q: tuple[float | None, ...]
    log_p: tuple[float | None, ...]
    text: tuple[str | None, ...] | None = None


@dataclass(frozen=True)
class Surroundings:
    """What is kept of a step with an alert beside its numbers; in its row of tokens alone.

    Attributes:
        tails: of each pair with an alert and each tail the neighbours of its tokens, in order.
        places: pair -> mean |d| by place.
    """

    tails: Sequence[Sequence[Neighbours]] = ()
    places: Mapping[str, Places] = field(default_factory=dict)


NOTHING = Surroundings()
"""Of a step without an alert."""


def neighbours_of(
    tokens: Sequence[ExtremeToken], found: NDArray[np.float32]
) -> list[list[Neighbours]]:
    """Of one pair's extreme tokens, those whose neighbours are known: left tail, right tail.

    Args:
        tokens: of the pair, each tail in order.
        found: [tails, top, 3, width], log q, log p, and what stands there.
    """
    return [
        [
            _neighbours(token, values)
            for token, values in zip([t for t in tokens if t.tail == tail], of_tail, strict=False)
            if values[2][len(values[2]) // 2]
        ]
        for tail, of_tail in zip(("left", "right"), found.tolist(), strict=True)
    ]


def _neighbours(token: ExtremeToken, values: list[list[float]]) -> Neighbours:
    there = [place for place, what in enumerate(values[2]) if what]
    log_q, log_p, what = (row[there[0] : there[-1] + 1] for row in values)
    return Neighbours(
        token,
        there[0] - len(values[2]) // 2,
        ids=tuple([int(one) - FIRST_ID if one >= FIRST_ID else None for one in what]),
        log_q=_known(log_q, what),
        log_p=_known(log_p, what),
    )


def _known(values: Sequence[float], what: Sequence[float]) -> tuple[float | None, ...]:
    """Those that are numbers of a token."""
    return tuple(
        [x if there and not math.isnan(x) else None for x, there in zip(values, what, strict=True)]
    )
