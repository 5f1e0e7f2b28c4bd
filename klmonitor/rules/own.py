"""A user's own rule: a plain function of a `Report`, with episodes like every other rule.

    def long_silence(report):
        if report.pairs and report.pairs["policy_ref"].tokens < 1000:
            return "fewer than 1,000 tokens this step"

    RuleSet({"own": long_silence})

It returns a message (a warning), a whole `Alert` (its severity, message, pair, values, tokens and
words are taken, its step and phase are not), or None while all is well.
"""

from __future__ import annotations

from collections.abc import Callable

from klmonitor.report import Alert, Report
from klmonitor.rules.rule import CRITICAL, WARN, Finding, Rule

OwnRule = Callable[[Report], "str | Alert | None"]
"""A report -> a message (or a whole alert) while something is wrong, else None."""

LEVELS = {"info": WARN, "warn": WARN, "critical": CRITICAL}


def own_rule(name: str, function: OwnRule) -> tuple[Rule, OwnRule]:
    """The episode's terms of a user's rule, and the function."""
    return (
        Rule(
            kind=name,
            thresholds={},
            means="",
            action="",
            source=f"your own rule {name}",
        ),
        function,
    )


def judge_own(function: OwnRule, report: Report) -> Finding | None:
    """Call a user's rule; what it raises is a finding of its own, never an exception."""
    try:
        said = function(report)
    except Exception as error:  # noqa: BLE001  # a user's code must not stop the other rules
        return Finding(
            message=f"this rule raised {type(error).__name__}: {error}",
            action="correct the function, or take it out of the rules",
        )
    if not said:
        return None
    if isinstance(said, Alert):
        return Finding(
            level=LEVELS.get(said.severity, WARN),
            severity=said.severity,
            message=said.message,
            believe=said.believe,
            values=said.values,
            tokens=said.tokens,
            pair=said.pair,
            action=said.action,
            means=said.means,
        )
    return Finding(message=str(said))
