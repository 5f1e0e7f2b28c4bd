"""Which alerts are open, those that tell one event together; and which rise never came back."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from klmonitor.record.mutes import Mute
from klmonitor.report import Alert
from klmonitor.rules.level import LONGEST
from klmonitor.rules.table import RULES
from klmonitor.rules.words import nats, plain

SEVERITIES = ("info", "warn", "critical")
OF_LEVEL = frozenset(rule.kind for rule in RULES if rule.joins_story)
BASES = ("expected", "largest_latest")
"""Values of an alert that tells a sudden rise: what k3 was before (`klmonitor.rules.spikes`)."""
TOGETHER = 3
"""Steps whose median is where k3 is: one step is no way back."""
FAR, LEAST = 4.0, 1e-3
"""Times what it was, and nats per token, above which k3 is still far from it: `surge`'s factor,
which an ordinary start-up keeps below, and `drift`'s smallest level."""


def open_alerts(
    alerts: Iterable[Alert], last: Mapping[str, Collection[str]]
) -> list[tuple[Alert, tuple[str, ...]]]:
    """Events that are open after the last step, the gravest first, each with its open kinds.

    An event is told by its last alert, at the highest severity it had. Kinds of a pair count as
    open as long as the last report says so, which knows of a start anew; of the run until they end.

    Args:
        alerts: of a run, ends included, as they came.
        last: pair -> kinds that are open on it by the last report that has it.
    """
    known = {rule.kind for rule in RULES}
    opened: dict[tuple[str, str | None], Alert] = {}
    for alert in alerts:
        if alert.phase == "end":
            gone = [k for k in opened if k[0] == alert.kind and alert.pair in (k[1], None)]
            for key in gone:
                del opened[key]
        else:
            opened.update({(kind, alert.pair): alert for kind in alert.kinds})
    events: dict[tuple[str | None, int], list[tuple[str, Alert]]] = {}
    for (kind, pair), alert in opened.items():
        if pair in last and kind in known and kind not in last[pair or ""]:
            continue
        events.setdefault((pair, alert.since or alert.step), []).append((kind, alert))
    found = [_event(parts) for parts in events.values()]
    return sorted(found, key=lambda one: -SEVERITIES.index(one[0].severity))


def _event(parts: Sequence[tuple[str, Alert]]) -> tuple[Alert, tuple[str, ...]]:
    last = max((alert for _, alert in parts), key=lambda alert: alert.step)
    gravest = max((a for _, a in parts), key=lambda a: (SEVERITIES.index(a.severity), a.step))
    severe = last if last.severity == gravest.severity else gravest
    return severe, tuple(dict.fromkeys(kind for kind, _ in parts))


class Raised(NamedTuple):
    """A sudden rise that was told, is not open any more, and never came back.

    Attributes:
        alert: the last that told it.
        since: the step at which it began.
        k3: now, nats per token.
        before: likewise, as its first alert said.
    """

    alert: Alert
    since: int
    k3: float
    before: float

    @property
    def message(self) -> str:
        """With the pair's name."""
        return f"{self.alert.pair}: {self.words}"

    @property
    def words(self) -> str:
        """Without."""
        return (
            f"the rise at step {self.since} has not come back, though its alert has ended: k3 is "
            f"{nats(self.k3)} per token (median of three steps), "
            f"{plain(self.k3 / self.before)}x the {nats(self.before)} before it"
        )

    @property
    def action(self) -> str:
        """What to do first."""
        return (
            f"look at the samples and the reward since step {self.since}; lower the learning rate, "
            "or go back to the checkpoint before it; if it is as it should be: klmonitor mute RUN "
            f"{self.alert.kind} --pair {self.alert.pair} --until {self.alert.step}"
        )


def raised(
    alerts: Iterable[Alert],
    steps: Sequence[int],
    k3: Sequence[float],
    opened: Iterable[tuple[Alert, tuple[str, ...]]] = (),
    mutes: Sequence[Mute] = (),
) -> Raised | None:
    """The first rise of a pair that left k3 far above what it was, if nothing else says so.

    An episode ends when its level has been learned, which is no way back. A rise has come back once
    k3 (median of three steps) was below half-way, in log k3, between what was told and what was
    before, or below `FAR` times that: what grows there later is another growth. It is no news after
    as many steps as a level is learned from, nor when it is muted: by a mute that reaches to the
    step at which it was told, also one that was written since.

    Args:
        alerts: of the pair, as they came.
        steps: at which it had data.
        k3: there.
        opened: what is open on it; where an alert of its level is that counts, this says nothing.
        mutes: what people muted.
    """
    if any(
        not alert.muted and alert.severity != "info" and not OF_LEVEL.isdisjoint(kinds)
        for alert, kinds in opened
    ):
        return None
    events: dict[int, list[Alert]] = {}
    for alert in alerts:
        if alert.phase != "end" and not alert.muted and _base(alert) > 0:
            events.setdefault(alert.since or alert.step, []).append(alert)
    if not events:
        return None
    known = [(at, value) for at, value in zip(steps, k3, strict=True) if math.isfinite(value)]
    for since, told in sorted(events.items()):
        last, before = told[-1], _base(told[0])
        if sum(at > since for at, _ in known) > LONGEST:
            continue
        half_way = math.sqrt(before * max(alert.values.get("k3", before) for alert in told))
        far = max(half_way, FAR * before, LEAST)
        after = [i for i, (at, _) in enumerate(known) if at > last.step]
        now = [median(v for _, v in known[max(i + 1 - TOGETHER, 0) : i + 1]) for i in after]
        if not now or min(*now, known[-1][1]) < far:
            continue
        if not any(mute.covers(last.kind, last) for mute in mutes):
            return Raised(last, since, now[-1], before)
    return None


def _base(alert: Alert) -> float:
    """What k3 was before a sudden rise; nan of other alerts."""
    return next((alert.values[name] for name in BASES if name in alert.values), math.nan)
