"""From when a pair's rules judge, in words: counted in steps that had its tokens."""

from __future__ import annotations

from collections.abc import Mapping

from klmonitor.rules.flat import SKIP, WARM_UP
from klmonitor.rules.growth import DRIFT, DRIFT_FROM, RUNAWAY
from klmonitor.rules.level import LEAST_BEFORE, LEAST_NEAR, MOVES_LEAST, NOW
from klmonitor.rules.level import WARM_UP as LEVEL_FROM
from klmonitor.rules.rule import Thresholds
from klmonitor.rules.signed import K1_EXCURSION
from klmonitor.rules.spikes import SHIFT, SPIKE, SURGE, SURGE_FROM

FROM = {
    SURGE.kind: SURGE_FROM + 1,
    SPIKE.kind: LEAST_NEAR + LEVEL_FROM + 1,
    K1_EXCURSION.kind: WARM_UP + SKIP + 1,
    SHIFT.kind: LEAST_BEFORE + NOW - 1 + MOVES_LEAST + NOW + 1,
    RUNAWAY.kind: int(RUNAWAY.thresholds["steps"]) + 1,
    DRIFT.kind: DRIFT_FROM + 1,
}
"""Kind -> the first of a pair's steps that it can find something at; others judge at once."""


def standing(seen: int, limits: Mapping[str, Thresholds]) -> str:
    """What judges a pair already and what does not yet.

    Args:
        seen: steps that had its tokens, since it (or a reference set anew) began.
        limits: thresholds of the rules that are on.
    """
    waiting = {kind: first for kind, first in FROM.items() if kind in limits and seen < first - 1}
    steps = f"{seen} step{'' if seen == 1 else 's'} with its tokens so far"
    if not waiting:
        return f"{steps}, all rules judge"
    return f"{steps}; " + ", ".join(
        f"{kind} judges from the {number}{_ordinal(number)}" for kind, number in waiting.items()
    )


def _ordinal(number: int) -> str:
    teen = number % 100 in (11, 12, 13)
    return "th" if teen else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
