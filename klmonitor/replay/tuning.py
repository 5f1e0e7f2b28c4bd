"""Thresholds for a wanted rate of false alarms, from runs on which nothing else was wrong.

Rules are replayed on the runs; while there are too many false alarms, the kind that raises most of
them gets its principal threshold raised by a notch. What the rules raise together is what counts,
so the proposal is a replay, not a sum of separate fits.

The search starts from the sensitive preset where the runs are long enough to resolve the wanted
rate, i.e. where it makes `RESOLVED` false alarms or more; else from the default: silence on a few
hundred steps is no reason to lower a threshold. A threshold is raised to `HIGHEST` times its value
at most: what still rings then is no chance event but a property of the runs. Nor is it raised past
an event: one that was told stays told, and no later.

Where nobody labelled events, nothing is assumed to have happened but what is evident (`evident`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from klmonitor.replay import replay
from klmonitor.replay.curve import Curve
from klmonitor.replay.scoring import PER, Event, Tally, score
from klmonitor.report import Alert
from klmonitor.rules import parse_rules

PRINCIPAL = ("z", "j", "ratio")
"""The threshold of a kind that is tuned: the first of these that it has."""
NOTCH = 1.15
HIGHEST = 4.0
"""Times its value in the preset that a threshold may be raised to."""
RESOLVED = 10
"""False alarms at the wanted rate from which on a record can tell rates apart."""
EVIDENT = 4.0
"""Times the median k3 of `BEFORE` steps at which nobody would call an alert false."""
BEFORE = 20
AFTER = 10
"""Steps in which what is told after an evident event is about it."""


@dataclass(frozen=True)
class Proposal:
    """What came out.

    Attributes:
        rules: the table to use.
        before: how the preset it started from does on the runs.
        after: how `rules` do.
        resolved: whether the runs are long enough for the wanted rate (`RESOLVED`).
        reached: whether it was reached.
        events: what counted as having happened: as labelled, else what is evident.
    """

    rules: Mapping[str, Any]
    before: Tally
    after: Tally
    resolved: bool
    reached: bool
    events: tuple[Event, ...] = ()


def tune(
    runs: Sequence[Curve],
    rate: float,
    events: Sequence[Event] | None = None,
    since: int | None = None,
) -> Proposal:
    """Propose thresholds.

    Args:
        runs: recorded runs.
        rate: false alarms per 10,000 steps that are acceptable.
        events: what happened in them, about which alerts are not false; None: what is evident.
        since: the first step that counts.

    Raises:
        ValueError: there are no steps, or the rate is not positive.
    """
    if not rate > 0:
        raise ValueError(f"rate {rate}: give false alarms per {PER} steps, more than 0")
    if events is None:
        events = [event for run in runs for event in evident(run, replay(run.reports))]
    known = tuple(events)

    def judge(rules: Mapping[str, Any]) -> Tally:
        scores = (score(run, replay(run.reports, rules), known, since) for run in runs)
        return sum(scores, Tally())

    rules: dict[str, Any] = {"preset": "default"}
    steps = judge(rules).quiet_steps
    if not steps:
        raise ValueError("the runs have no steps outside events: give longer ones")
    allowed = rate * steps / PER
    resolved = allowed >= RESOLVED
    if resolved:
        rules["preset"] = "sensitive"
    before = after = judge(rules)
    spent: set[str] = set()
    while len(after.false) > allowed and (quieter := _quieter(rules, after, spent)):
        kind, table = quieter
        found = judge(table)
        if _as_early(found, before):
            rules, after = table, found
        else:
            spent.add(kind)
    return Proposal(rules, before, after, resolved, len(after.false) <= allowed, known)


def evident(run: Curve, alerts: Sequence[Alert]) -> list[Event]:
    """What nobody would call a false alarm: it is critical, or k3 is `EVIDENT` times its past."""
    events: list[Event] = []
    for alert in alerts:
        start = alert.since if alert.phase == "worse" else alert.step
        told = bool(events) and start <= events[-1].end
        if not told and (alert.severity == "critical" or _rise(run, alert) >= EVIDENT):
            events.append(Event(start, start + AFTER, run=run.name))
    return events


def _rise(run: Curve, alert: Alert) -> float:
    """k3 at an alert over its median in the steps before; 0 where that is not known."""
    mine = [r for r in run.reports if alert.pair in r.pairs and r.step <= alert.step]
    k3 = [r.pairs[alert.pair or ""].k3.mean for r in mine[-1 - BEFORE :]]
    usual = median(k3[:-1]) if len(k3) > 1 else 0.0
    return k3[-1] / usual if usual > 0 else 0.0


def _as_early(found: Tally, before: Tally) -> bool:
    """Whether every event that was told is told, and no later."""
    both = zip(found.delays, before.delays, strict=True)
    return all(old is None or (new is not None and new <= old) for new, old in both)


def _quieter(
    rules: Mapping[str, Any], found: Tally, spent: Container[str]
) -> tuple[str, dict[str, Any]] | None:
    """The loudest kind that has room, and the rules with its threshold a notch higher."""
    thresholds = parse_rules(rules).thresholds
    original = parse_rules(rules["preset"]).thresholds
    for kind, _ in Counter(alert.kind for alert in found.false).most_common():
        name = next((name for name in PRINCIPAL if name in thresholds.get(kind, {})), None)
        if name is not None and kind not in spent:
            value = float(f"{NOTCH * thresholds[kind][name]:.3g}")
            if value <= HIGHEST * original[kind][name]:
                return kind, {**rules, kind: {**rules.get(kind, {}), name: value}}
    return None
