"""One step of a record, examined: which is the worst, and everything that is known of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from klmonitor.dashboard.events import SEVERITIES, open_alerts
from klmonitor.dashboard.standing import still_raised
from klmonitor.record import RunRecord
from klmonitor.record.rows import alert_to_row, finite_or_none, token_to_row
from klmonitor.report import PairReport, Report, Row

SCHEMA = "klmonitor.explain/1"


def chosen_step(run: RunRecord, step: int | None) -> tuple[Report, str]:
    """The report of a step, or of the worst, and why it is that one.

    The worst is where the gravest alert opened, the first of several; without alerts where the
    spike score was highest; without scores where k3 was largest.

    Raises:
        ValueError: there is no such step, or none at all.
    """
    steps = {report.step: report for report in run.reports if report.phase == "train"}
    if not steps:
        raise ValueError("no training step is recorded yet")
    if step is not None:
        if step not in steps:
            near = min(steps, key=lambda one: (abs(one - step), one))
            raise ValueError(f"there is no step {step}: the nearest is {near}")
        return steps[step], "as asked"
    told = [a for a in run.alerts if a.phase != "end" and not a.muted and a.step in steps]
    if told:
        worst = max(told, key=lambda alert: SEVERITIES.index(alert.severity))
        return steps[worst.step], f"the gravest alert, {worst.severity} {worst.kind}"
    for metric, why in (("spike/z", "the highest spike score"), ("k3/mean", "the largest k3")):
        sized = [(_largest(report, metric), report.step) for report in steps.values()]
        found = [one for one in sized if not math.isnan(one[0])]
        if found:
            return steps[max(found, key=lambda one: one[0])[1]], f"{why}; no alert was told"
    return steps[max(steps)], "the last one"


def _largest(report: Report, metric: str) -> float:
    values = [pair[metric] for pair in report.pairs.values()]
    return max((value for value in values if not math.isnan(value)), default=math.nan)


def raised_at(run: RunRecord, report: Report) -> list[str]:
    """Rises of which no alert was open at a step, and that had not come back, in words."""
    alerts = [alert for alert in run.alerts if alert.step <= report.step]
    until = replace(
        run, alerts=alerts, reports=[one for one in run.reports if one.step <= report.step]
    )
    kinds = {name: pair.open_kinds for name, pair in report.pairs.items()}
    return [one.message for one in still_raised(until, open_alerts(alerts, kinds))]


def examined(report: Report, why: str, still: Sequence[str] = ()) -> Row:
    """All that is known of a step, for programs; `still` as of `raised_at`."""
    return {
        "schema": SCHEMA,
        "step": report.step,
        "why": why,
        "text": report.explain(),
        "raised": list(still),
        "pairs": {name: _pair(report.step, pair) for name, pair in report.pairs.items()},
        "alerts": [alert_to_row(alert) for alert in report.alerts],
        "run_values": {key: finite_or_none(v) for key, v in report.run_values.items()},
    }


def _pair(step: int, pair: PairReport) -> Row:
    return {
        "text": pair.explain(step),
        "believe": pair.verdict.estimator,
        "verdict": pair.verdict.text,
        "cause": vars(pair.cause) if pair.cause.name else None,
        "penalty": pair.penalty or None,
        "findings": list(pair.words(pair)),
        "open": list(pair.open_kinds),
        "values": {key: finite_or_none(v) for key, v in pair.values.items() if not math.isnan(v)},
        "tokens": [token_to_row(token) for token in pair.extremes],
    }


def in_words(report: Report, why: str, still: Sequence[str] = (), tokens: int = 3) -> str:
    """The same for people: verdicts, what the rules said, the receipt and the extreme tokens."""
    lines = [f"step {report.step}: {why}", "", report.explain(), *still]
    for alert in report.alerts:
        lines += ["", alert.text()]
    for name, pair in report.pairs.items():
        listed = pair.most_extreme(tokens)
        receipt = [key for key in pair.values if key.startswith("penalty/")]
        if receipt:
            lines += ["", f"{name}, receipt of the KL term {pair.penalty}".rstrip()]
            lines += [f"  {key} = {pair[key]:.4g}" for key in receipt]
        if listed:
            lines += ["", f"{name}, most extreme tokens (d = log p - log q, nats):"]
            lines += [
                f"  d = {token.log_ratio:+.4g} (q {token.log_q:.4g}, p {token.log_p:.4g}) at "
                f"{token.where}"
                for token in listed
            ]
    return "\n".join(lines)
