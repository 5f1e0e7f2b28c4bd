"""Reports in, alerts out."""

from klmonitor.rules.own import OwnRule
from klmonitor.rules.ruleset import Judgement, RuleSet
from klmonitor.rules.settings import Rules, describe_rules, parse_rules, settings_to_row

__all__ = [
    "Judgement",
    "OwnRule",
    "RuleSet",
    "Rules",
    "describe_rules",
    "parse_rules",
    "settings_to_row",
]
