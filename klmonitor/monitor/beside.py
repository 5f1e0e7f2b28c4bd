"""What is kept beside the numbers of a step with an alert: where |d| sits, and whose neighbours."""

from __future__ import annotations

from klmonitor.numbers.neighbours import NOTHING, Neighbours, Surroundings, neighbours_of
from klmonitor.numbers.places import DECILES, TURNS, by_place
from klmonitor.pairs import PAIR_INDEX, PAIRS
from klmonitor.report import Report
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
    tails: list[list[Neighbours]] = []
    if found is not None:
        host = found.numpy()
        for name in names:
            tails += neighbours_of(report.pairs[name].extremes, host[PAIR_INDEX[name]])
    places = {name: by_place(one.numpy()) for name, one in sums.items() if one is not None}
    return Surroundings(tails, places)
