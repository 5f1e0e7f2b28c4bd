"""Alerts against what really happened: events found, how late, and what was a false alarm.

An alert belongs to an event if its episode opened within the event's steps. What belongs to none
is a false alarm. The rate is per 10,000 steps outside events; its bound is the exact one-sided
95 % limit of a Poisson count (Garwood 1936).
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from typing_extensions import Self

from klmonitor.replay.curve import Curve
from klmonitor.report import Alert

WINDOW = 50
"""Steps after its start that an event lasts, unless its end is given."""
PER = 10_000
Counts = TypeVar("Counts", bound="Summed")


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes:
        start: first step.
        end: last step at which an alert about it may open.
        kind: the kind of alert that counts, None for any.
        run: the run it belongs to: the end of its path; None for every run.
    """

    start: int
    end: int
    kind: str | None = None
    run: str | None = None

    def concerns(self, alert: Alert) -> bool:
        """Whether an alert is about it."""
        opened = alert.since if alert.phase == "worse" else alert.step
        return self.start <= opened <= self.end and (self.kind is None or self.kind in alert.kinds)

    def within(self, run: str) -> bool:
        """Whether it belongs to a run."""
        return self.run is None or f"/{run.rstrip('/')}".endswith(f"/{self.run.strip('/')}")


@dataclass(frozen=True)
class Summed:
    """Counts, whose fields are added one by one."""

    def __add__(self, other: Self) -> Self:
        """Two as one."""
        pairs = ((getattr(self, one.name), getattr(other, one.name)) for one in fields(self))
        return type(self)(*(mine + theirs for mine, theirs in pairs))


@dataclass(frozen=True)
class Tally(Summed):
    """One run, or several together.

    Attributes:
        alerts: all of them.
        false: those that belong to no event.
        delays: steps from the start of each event to its first alert, None if it was not found.
        steps: judged.
        quiet_steps: judged and outside every event.
    """

    alerts: tuple[Alert, ...] = ()
    false: tuple[Alert, ...] = ()
    delays: tuple[int | None, ...] = ()
    steps: int = 0
    quiet_steps: int = 0

    @property
    def found(self) -> list[int]:
        """Delays of the events that were found."""
        return [delay for delay in self.delays if delay is not None]

    @property
    def delay(self) -> float:
        """Median delay, steps; nan if nothing was found."""
        return float(median(self.found)) if self.found else math.nan

    @property
    def rate(self) -> float:
        """False alarms per 10,000 steps, nan without steps."""
        return PER * len(self.false) / self.quiet_steps if self.quiet_steps else math.nan

    @property
    def bound(self) -> float:
        """Upper 95 % bound of `rate`."""
        return PER * upper(len(self.false)) / self.quiet_steps if self.quiet_steps else math.inf


def score(
    run: Curve, alerts: Iterable[Alert], events: Sequence[Event] = (), since: int | None = None
) -> Tally:
    """Judge the alerts of one run.

    Args:
        run: the run.
        alerts: openings and worsenings that rules raise on it; those that are muted do not count.
        events: what happened; those of other runs are left out.
        since: the first step that counts.
    """
    first = -math.inf if since is None else since
    mine = [event for event in events if event.within(run.name)]
    counted = [alert for alert in alerts if alert.step >= first and not alert.muted]
    steps = [report.step for report in run.reports if report.step >= first]
    if steps:
        mine = [event for event in mine if event.end >= steps[0] and event.start <= steps[-1]]
    outside = [s for s in steps if not any(event.start <= s <= event.end for event in mine)]
    delays = []
    for event in mine:
        hits = [alert.step for alert in counted if event.concerns(alert)]
        delays.append(min(hits) - event.start if hits else None)
    return Tally(
        alerts=tuple(counted),
        false=tuple(a for a in counted if not any(event.concerns(a) for event in mine)),
        delays=tuple(delays),
        steps=len(steps),
        quiet_steps=len(outside),
    )


def upper(count: int) -> float:
    """The mean at which a Poisson count is `count` or less in 5 % of cases, by bisection."""
    low, high = float(count), count + 10.0 + 5 * math.sqrt(count)
    for _ in range(60):
        middle = (low + high) / 2
        terms = (k * math.log(middle) - math.lgamma(k + 1) for k in range(count + 1))
        low, high = (
            (middle, high) if sum(math.exp(t - middle) for t in terms) > 0.05 else (low, middle)
        )
    return high


def load_events(path: str) -> list[Event]:
    """Events from a file: CSV with a head, or a JSON list of objects.

    Columns: ``start`` (or ``step``), and if wanted ``end``, ``kind``, ``run``.

    Raises:
        ValueError: something cannot be understood; the message names it.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot read the events in {path}: {error.strerror or error}") from None
    try:
        csv_file = file.suffix.lower() == ".csv"
        rows = list(csv.DictReader(text.splitlines())) if csv_file else json.loads(text)
    except ValueError:
        rows = None
    if not isinstance(rows, list):
        raise ValueError(f"{path}: give CSV, or a JSON list of objects with start, end, kind, run")
    return [_event(path, number, row) for number, row in enumerate(rows, 1)]


def _event(path: str, number: int, row: Any) -> Event:
    try:
        start = int(row["start"] if row.get("start") not in (None, "") else row["step"])
        end = int(row["end"]) if row.get("end") not in (None, "") else start + WINDOW
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(
            f"{path}, event {number}: give whole numbers for start (or step) and end"
        ) from None
    if end < start:
        raise ValueError(f"{path}, event {number} ends at {end}, before it starts at {start}")
    return Event(start, end, row.get("kind") or None, row.get("run") or None)
