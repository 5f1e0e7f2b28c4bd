"""Reports in, alerts out."""

from klmonitor.rules.own import OwnRule
from klmonitor.rules.render import alert_json, alert_markdown
from klmonitor.rules.ruleset import Judgement, RuleSet
from klmonitor.rules.settings import Rules, parse_rules

__all__ = [
    "Judgement",
    "OwnRule",
    "RuleSet",
    "Rules",
    "alert_json",
    "alert_markdown",
    "parse_rules",
]
