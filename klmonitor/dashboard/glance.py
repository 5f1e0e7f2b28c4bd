"""A pair in one line: where it stands, where it goes, what to believe, what is open since when."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, variance

from klmonitor.dashboard.events import SEVERITIES, Raised
from klmonitor.report import Alert, PairReport, Row

Event = tuple[Alert, tuple[str, ...]]
MEANS = ("k1", "k3", "cv")
"""Estimators that a verdict may name."""
WINDOW = (5, 50)
"""Steps: the least and the most that a trend compares with as many before them."""
SHARE = 8
"""A window is one in so many of the run's steps."""
FAR = 3.0
"""Standard errors of a difference of two windows' means from which it is a trend."""


def glance(
    pair: PairReport,
    step: int,
    last_step: int,
    means: Mapping[str, Sequence[float]],
    events: Sequence[Event],
    still: Raised | None = None,
) -> Row:
    """The line in its parts.

    Args:
        pair: its last numbers.
        step: where it had them.
        last_step: the run's.
        means: ``"k1"``, ``"k3"`` and ``"cv"`` -> the means of the run's steps, nats per token.
        events: what is open on it, the gravest first.
        still: a rise that is not open and never came back: a warning.

    Returns:
        ``level``: the gravest severity that is open and not muted, else ``"fine"``; ``step``;
        ``parts``: sentences, to be read in their order; ``since``: the first such event's step.
    """
    loud = [SEVERITIES.index(alert.severity) for alert, _ in events if not alert.muted]
    believed = pair.verdict.estimator
    parts = [_level(pair, believed), _trend(believed, means), _believe(pair), _open(events, still)]
    behind = last_step - step
    late = f", {behind} step{'s'[: behind > 1]} before the run's last" if behind else ""
    return {
        "level": ("fine", "warn", "critical")[max([*loud, 1 if still else 0])],
        "step": step,
        "parts": [f"step {step}{late}", *(part for part in parts if part)],
        "since": min(
            [*(_since(alert) for alert, _ in events), *([still.since] if still else [])],
            default=None,
        ),
    }


def _level(pair: PairReport, believed: str | None) -> str:
    shown = [believed] if believed else ["k1", "k3"]
    sizes = [
        f"{name} {pair[f'{name}/mean']:.4g} ± {pair[f'{name}/se']:.2g}"
        for name in shown
        if not math.isnan(pair[f"{name}/mean"])
    ]
    return f"{', '.join(sizes)} nats/token" if sizes else "no token was counted"


def _trend(believed: str | None, means: Mapping[str, Sequence[float]]) -> str:
    """The mean over the last steps beside as many before them, in Welch's standard errors."""
    if believed is None:
        return ""
    found = [value for value in means.get(believed, ()) if not math.isnan(value)]
    size = min(max(len(found) // SHARE, WINDOW[0]), WINDOW[1])
    if len(found) < 2 * size:
        return ""
    late, early = found[-size:], found[-2 * size : -size]
    now, before = fmean(late), fmean(early)
    error = math.sqrt((variance(late) + variance(early)) / size)
    word = "steady" if abs(now - before) <= FAR * error else ("falling", "rising")[now > before]
    return f"{word}: {now:.3g} in the last {size} steps, {before:.3g} in the {size} before"


def _believe(pair: PairReport) -> str:
    if not pair.verdict.text:
        return "too little is known yet to say which estimator to believe"
    return f"believe {pair.verdict.estimator or 'neither k1 nor k3'}"


def _open(events: Sequence[Event], still: Raised | None) -> str:
    if still:
        return "; ".join([*([_open(events, None)] if events else []), still.words])
    if not events:
        return "no alert is open"
    told = [
        f"{', '.join(kinds)}{_weight(alert)} since step {_since(alert)}" for alert, kinds in events
    ]
    return f"open: {'; '.join(told)}"


def _weight(alert: Alert) -> str:
    return f" ({'muted' if alert.muted else alert.severity})"


def _since(alert: Alert) -> int:
    return alert.since or alert.step
