import json
import math

import pytest

from klmonitor.rules import RuleSet, describe_rules, parse_rules, settings_to_row
from klmonitor.rules.table import PRESETS, RULES

try:
    import tomllib
except ImportError:  # Python 3.10
    tomllib = None


def test_presets_differ_and_turn_everything_on():
    parsed = {name: parse_rules(name).thresholds for name in PRESETS}
    assert set(parsed) == {"default", "quiet", "sensitive"}
    for thresholds in parsed.values():
        assert set(thresholds) == {rule.kind for rule in RULES}
    z = {name: thresholds["spike"]["z"] for name, thresholds in parsed.items()}
    assert z["sensitive"] < z["default"] < z["quiet"]


def test_a_table_changes_a_preset():
    rules = parse_rules(
        {"preset": "quiet", "spike": {"z": 9}, "surge": False, "limit": {"policy_ref": 0.1}}
    ).thresholds
    assert rules["spike"] == {**parse_rules("quiet").thresholds["spike"], "z": 9.0}
    assert "surge" not in rules
    assert rules["limit"]["policy_ref"] == 0.1
    assert rules["shift"] == parse_rules("quiet").thresholds["shift"]


@pytest.mark.skipif(tomllib is None, reason="tomllib needs Python 3.11")
def test_the_same_as_toml():
    table = tomllib.loads('preset = "quiet"\nsurge = false\n[spike]\nz = 9\n')
    given = parse_rules(table)
    assert given == parse_rules({"preset": "quiet", "surge": False, "spike": {"z": 9}})


def not_a_rule(report):
    return None


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        ("defualt", ValueError, "unknown preset 'defualt': did you mean 'default'"),
        ({"preset": 3}, ValueError, "unknown preset 3"),
        ({"spikes": {}}, ValueError, "unknown rule 'spikes': did you mean 'spike'"),
        ({"spike": {"zz": 3}}, ValueError, "unknown threshold of rule 'spike' 'zz'.*ratio"),
        ({"spike": {"z": "high"}}, ValueError, "spike.z is 'high': give a number"),
        ({"spike": {"z": math.nan}}, ValueError, "spike.z is nan: give a number"),
        ({"spike": {"z": True}}, ValueError, "spike.z is True: give a number"),
        ({"spike": 6}, ValueError, "'spike' is 6: give true, false or a table of z"),
        ({"limit": 0.1}, ValueError, "'limit' is 0.1: .* table of policy_ref"),
        ({"limit": {"policy_reff": 0.1}}, ValueError, "'policy_reff': did you mean 'policy_ref'"),
        ({"own": "loud"}, ValueError, "'loud' cannot be called"),
        ({"own": ["loud"]}, ValueError, "'loud' cannot be called"),
        ({"own": [not_a_rule, not_a_rule]}, ValueError, "two rules are called 'not_a_rule'"),
        (7, TypeError, "rules must be the name of a preset .* not int"),
        (None, TypeError, "not NoneType"),
    ],
)
def test_what_cannot_be_understood_is_named_with_its_remedy(rules, error, message):
    with pytest.raises(error, match=message) as caught:
        RuleSet(rules)
    assert "\n" not in str(caught.value)


def test_every_rule_explains_itself():
    for rule in RULES:
        assert rule.means
        assert rule.action
        assert rule.source.startswith("docs/alerts.md#")
        assert all(math.isfinite(value) for value in rule.thresholds.values())


def test_a_record_says_which_rules_were_in_force():
    def mine(report):
        return None

    table = {"preset": "quiet", "spike": {"z": 9}, "surge": False, "own": mine}
    table["limit"] = {"policy_ref": math.inf}
    settings = parse_rules(table)
    row = json.loads(json.dumps(settings_to_row(settings), allow_nan=False))
    assert row["preset"] == "quiet"
    assert row["thresholds"]["spike"] == {**settings.thresholds["spike"], "z": 9}
    assert set(row["thresholds"]) == set(settings.thresholds)
    assert row["own"] == ["mine"]
    said = describe_rules(row)
    assert said[0] == "quiet"
    assert {"spike z = 9", "surge off", "mine"} <= set(said)
    assert len(said) == 5
    assert describe_rules(settings_to_row(parse_rules("default"))) == ["default"]
    assert describe_rules({"preset": "of old", "thresholds": {"spike": {"z": 3}}, "own": []}) == [
        "of old",
        "spike z = 3",
    ]
