"""The coefficient c of a run's KL term against d, for the page to draw beside the reverse KL's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from klmonitor.dashboard.heat import BOUNDS, LARGEST, Floats
from klmonitor.penalty import Penalty, own_terms
from klmonitor.report import Row

POINTS = 161
"""Of a curve, spread as asinh(d / KNEE)."""
KNEE = 0.05
"""Nats: where the spacing turns from even to logarithmic."""
_GRID = KNEE * np.sinh(np.linspace(-1, 1, POINTS) * np.arcsinh(LARGEST / KNEE))
_MIDDLES = (BOUNDS[1:] + BOUNDS[:-1]) / 2
"""[ROWS] d in the middle of each row of the heat map."""


def curves(terms: Any) -> Row:
    """The curve of each pair whose term is known.

    Args:
        terms: pair -> the fields of a `Penalty`, as ``run.json`` has them; what is none is left
            out.

    Returns:
        Pair -> ``term``; ``d``, ``c`` and ``rows``, c at the middle of each row of the heat map;
        or ``why`` there is no curve.
    """
    given = terms.items() if isinstance(terms, Mapping) else ()
    read = ((str(pair), _penalty(fields)) for pair, fields in given)
    return {pair: _curve(penalty) for pair, penalty in read if penalty is not None}


def _penalty(fields: Any) -> Penalty | None:
    try:
        return Penalty(**fields)
    except (TypeError, ValueError):
        return None


def _curve(penalty: Penalty) -> Row:
    if penalty.returns != "token" or penalty.level != "token":
        why = "the term is one of whole sequences: its c is no function of one token's d"
        return {"term": str(penalty), "why": why}
    d = np.unique(np.concatenate([_GRID, _edges(penalty)]))
    return {
        "term": str(penalty),
        "ratio": penalty.ratio is not None,
        "d": d.tolist(),
        "c": _finite(penalty.coefficient(d)),
        "rows": _finite(penalty.coefficient(_MIDDLES)),
    }


def _edges(penalty: Penalty) -> Floats:
    """Both sides of each limit of a clamp, so that the step there is drawn as one."""
    places = [] if penalty.clamp_d is None else [-penalty.clamp_d, penalty.clamp_d]
    if penalty.clamp is not None:
        limit, free = penalty.clamp, replace(penalty, clamp=None)

        def beyond(d: Floats) -> Floats:
            f: Floats = own_terms(free, d)[0]
            return np.abs(f) - limit

        over = beyond(_GRID) > 0
        low, high = _GRID[:-1][over[1:] != over[:-1]], _GRID[1:][over[1:] != over[:-1]]
        rising = beyond(high) > 0
        for _ in range(50):
            middle = (low + high) / 2
            upper = (beyond(middle) > 0) == rising
            low, high = np.where(upper, low, middle), np.where(upper, middle, high)
        places += low.tolist()
    sides = [x * side for x in places for side in (1 - 1e-6, 1 + 1e-6)]
    return np.array(sides, dtype=np.float64)


def _finite(c: Any) -> list[float]:
    return [float(x) for x in np.clip(c, -1e30, 1e30)]
