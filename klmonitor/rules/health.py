"""klmonitor itself: log-probs are not captured any more, in part or at all."""

from __future__ import annotations

from klmonitor.report import Report
from klmonitor.rules.rule import Finding, Rule

RECORD = "the record: "
"""How it begins where rows cannot be written."""


def inactive(report: Report) -> Finding | None:
    """Something without which numbers are missing rests, on this rank or on another."""
    if report.health.active:
        return None
    why = report.health.why or "on another rank, whose log says why"
    if why.startswith(RECORD):
        return Finding(message=f"klmonitor cannot write what it finds: {why}")
    return Finding(message=f"klmonitor misses log-probs: {why}")


INACTIVE = Rule(
    kind="inactive",
    thresholds={},
    means="a policy's log-probs come in another shape than the others', a hook failed, or the disk "
    "of the record is full or gone",
    action="mend what the message names; it is tried again by itself, and this ends when it works",
    source="docs/alerts.md#inactive: failures in a row",
    cooldown=0,
)
