"""Thresholds for a wanted rate of false alarms, from runs on which nothing else was wrong.

Rules are replayed on the runs; while there are too many false alarms, the kind that raises most of
them gets its principal threshold raised by a notch. What the rules raise together is what counts,
so the proposal is a replay, not a sum of separate fits.

The search starts from the sensitive preset where the runs are long enough to resolve the wanted
rate, i.e. where it makes `RESOLVED` false alarms or more; else from the default: silence on a few
hundred steps is no reason to lower a threshold. A threshold is raised to `HIGHEST` times its value
at most: what still rings then is no chance event but a property of the runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from klmonitor.replay import replay
from klmonitor.replay.scoring import PER, Event, Score, score
from klmonitor.replay.series import Recorded
from klmonitor.rules import parse_rules

PRINCIPAL = ("z", "j", "ratio")
"""The threshold of a kind that is tuned: the first of these that it has."""
NOTCH = 1.15
HIGHEST = 4.0
"""Times its value in the preset that a threshold may be raised to."""
RESOLVED = 10
"""False alarms at the wanted rate from which on a record can tell rates apart."""


@dataclass(frozen=True)
class Proposal:
    """What came out.

    Attributes:
        rules: the table to use.
        before: how the preset it started from does on the runs.
        after: how `rules` do.
        resolved: whether the runs are long enough for the wanted rate (`RESOLVED`).
        reached: whether it was reached.
    """

    rules: Mapping[str, Any]
    before: Score
    after: Score
    resolved: bool
    reached: bool


def tune(
    runs: Sequence[Recorded],
    rate: float,
    events: Sequence[Event] = (),
    since: int | None = None,
) -> Proposal:
    """Propose thresholds.

    Args:
        runs: recorded runs; what happened in them is in `events`.
        rate: false alarms per 10,000 steps that are acceptable.
        events: alerts about these are not false.
        since: the first step that counts.

    Raises:
        ValueError: there are no steps, or the rate is not positive.
    """
    if not rate > 0:
        raise ValueError(f"rate {rate}: give false alarms per {PER} steps, more than 0")

    def judge(rules: Mapping[str, Any]) -> Score:
        scores = (score(run, replay(run.reports, rules), events, since) for run in runs)
        return sum(scores, Score())

    rules: dict[str, Any] = {"preset": "default"}
    steps = judge(rules).quiet_steps
    if not steps:
        raise ValueError("the runs have no steps outside events: give longer ones")
    allowed = rate * steps / PER
    resolved = allowed >= RESOLVED
    if resolved:
        rules["preset"] = "sensitive"
    before = after = judge(rules)
    while len(after.false) > allowed and _raise(rules, after):
        after = judge(rules)
    return Proposal(rules, before, after, resolved, len(after.false) <= allowed)


def _raise(rules: dict[str, Any], found: Score) -> bool:
    """Raise the loudest kind's threshold by a notch; False if none that rings has room."""
    thresholds = parse_rules(rules).thresholds
    original = parse_rules(rules["preset"]).thresholds
    for kind, _ in Counter(alert.kind for alert in found.false).most_common():
        name = next((name for name in PRINCIPAL if name in thresholds.get(kind, {})), None)
        if name is not None:
            value = float(f"{NOTCH * thresholds[kind][name]:.3g}")
            if value <= HIGHEST * original[kind][name]:
                rules[kind] = {**rules.get(kind, {}), name: value}
                return True
    return False
