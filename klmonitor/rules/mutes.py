"""Marks the alerts that are muted, alike on every rank.

Only the main rank reads the run's file of mutes, and all ranks act on alerts together. So mutes
travel with the values of which every rank learns the largest: one number a kind and pair.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from klmonitor.pairs import PAIR_INDEX
from klmonitor.record.mutes import Mute
from klmonitor.report import Alert

NOT_MUTED = -math.inf


def marked(alerts: Iterable[Alert], mutes: Sequence[Mute]) -> tuple[Alert, ...]:
    """The alerts, those that a mute holds for marked as muted."""
    return tuple(
        replace(alert, muted=True) if any(mute.covers(alert) for mute in mutes) else alert
        for alert in alerts
    )


class MuteTable:
    """Mutes as numbers: the last muted step of each kind and pair.

    Args:
        kinds: every kind of alert that there may be, in the same order on every rank.
    """

    def __init__(self, kinds: Iterable[str]) -> None:
        self._keys = [(kind, pair) for kind in kinds for pair in (None, *PAIR_INDEX)]

    def encode(self, mutes: Iterable[Mute]) -> list[float]:
        """One number a kind and pair; a kind that nobody knows has none."""
        until = {(mute.kind, mute.pair): mute.until_step for mute in mutes}
        return [until.get(key, NOT_MUTED) for key in self._keys]

    def decode(self, numbers: Sequence[float]) -> list[Mute]:
        """The mutes that numbers stand for."""
        both = zip(self._keys, numbers, strict=True)
        return [Mute(*key, until) for key, until in both if until != NOT_MUTED]
