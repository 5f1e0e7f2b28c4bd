"""Which alerts are open, those that tell one event together."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from klmonitor.report import Alert
from klmonitor.rules.table import RULES

SEVERITIES = ("info", "warn", "critical")


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
