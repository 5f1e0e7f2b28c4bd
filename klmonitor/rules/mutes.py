"""Marks the alerts that are muted, alike on every rank.

Only the main rank reads the run's file of mutes, and all ranks act on alerts together. So mutes
travel with the values of which every rank learns the largest: one number a kind and pair. The kinds
are those of the table alone, which every rank has: a user's own rule is muted in the settings.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from klmonitor.pairs import PAIR_INDEX
from klmonitor.record.mutes import Mute
from klmonitor.report import Alert
from klmonitor.rules.table import RULES

NOT_MUTED = -math.inf
KEYS = [(rule.kind, pair) for rule in RULES for pair in (None, *PAIR_INDEX)]
_NONE = [NOT_MUTED] * len(KEYS)


def marked(alerts: Iterable[Alert], mutes: Sequence[Mute]) -> tuple[Alert, ...]:
    """The alerts, those marked as muted that tell nothing but what is muted."""

    def muted(alert: Alert) -> bool:
        return all(any(mute.covers(kind, alert) for mute in mutes) for kind in alert.kinds)

    return tuple(replace(alert, muted=True) if muted(alert) else alert for alert in alerts)


def encode(mutes: Iterable[Mute]) -> list[float]:
    """Mutes as one number for each of `KEYS`: the last muted step."""
    until = {(mute.kind, mute.pair): mute.until_step for mute in mutes}
    return [until.get(key, NOT_MUTED) for key in KEYS] if until else [*_NONE]


def decode(numbers: Sequence[float]) -> list[Mute]:
    """The mutes that numbers stand for."""
    if max(numbers, default=NOT_MUTED) == NOT_MUTED:
        return []
    both = zip(KEYS, numbers, strict=True)
    return [Mute(*key, until) for key, until in both if until != NOT_MUTED]
