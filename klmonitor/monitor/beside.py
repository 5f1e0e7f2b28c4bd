"""What is told beside the numbers of a step with an alert: where |d| sits, and whose neighbours."""

from __future__ import annotations

from dataclasses import replace

from klmonitor.numbers.neighbours import Neighbours, neighbours_of
from klmonitor.numbers.places import DECILES, TURNS, by_place
from klmonitor.pairs import PAIR_INDEX, parse_pairs
from klmonitor.report import PairReport, Report
from klmonitor.summary.around import Around


def with_beside(
    report: Report, beside: Around | None, tokens: bool
) -> tuple[Report, list[list[Neighbours]]]:
    """A report and the neighbours, of pairs with an alert of this step; may wait for the device.

    Args:
        report: with its alerts.
        beside: of its summary; None: nothing is known.
        tokens: whether anybody keeps the extreme tokens.

    Returns:
        The report with those pairs' mean |d| by place, and a list of neighbours a tail.
    """
    told = {alert.pair for alert in report.alerts}
    names = [name for name in report.pairs if name in told]
    if not names or beside is None:
        return report, []
    pairs = {name: _with_places(report.pairs[name], beside) for name in names}
    found = beside.tensor if tokens else None
    tails: list[list[Neighbours]] = []
    if found is not None:
        host = found.cpu().numpy()
        for name in names:
            tails += neighbours_of(report.pairs[name].extremes, host[PAIR_INDEX[name]])
    return replace(report, pairs={**report.pairs, **pairs}), tails


def _with_places(pair: PairReport, beside: Around) -> PairReport:
    """A pair with its mean |d| by place, where its tokens are at hand."""
    sums = beside.places(parse_pairs([pair.name])[0], DECILES, TURNS)
    if sums is None:
        return pair
    return replace(pair, values={**pair.values, **by_place(sums.numpy())})
