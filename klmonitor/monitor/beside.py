"""What is kept beside the numbers of a step with an alert: where |d| sits, and whose neighbours."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from klmonitor.numbers.neighbours import NOTHING, Neighbours, Surroundings, neighbours_of
from klmonitor.numbers.places import DECILES, TURNS, by_place
from klmonitor.pairs import PAIR_INDEX, PAIRS
from klmonitor.report import Later, Report
from klmonitor.summary.around import Around


def surroundings(report: Report, beside: Around | None) -> Surroundings:
    """What is known of pairs with an alert of this step alone.

    Args:
        report: with its alerts.
        beside: of its summary; None: nothing is known.
    """
    told = {alert.pair for alert in report.alerts}
    names = [name for name in report.pairs if name in told]
    if not names or beside is None:
        return NOTHING
    sums = {name: beside.places(PAIRS[PAIR_INDEX[name]], DECILES, TURNS) for name in names}
    found = beside.tensor
    places = {name: by_place(one.numpy()) for name, one in sums.items() if one is not None}
    return Surroundings(
        () if found is None else Later(partial(_tails, report, names, found.numpy())), places
    )


def _tails(report: Report, names: list[str], found: NDArray[np.float32]) -> list[list[Neighbours]]:
    """The neighbours of some pairs' extreme tokens, made where the record is written."""
    return [
        tail
        for name in names
        for tail in neighbours_of(report.pairs[name].extremes, found[PAIR_INDEX[name]])
    ]
