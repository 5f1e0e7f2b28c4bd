"""What `on_alert` makes of alerts."""

from dataclasses import replace

import pytest

from klmonitor.hooks.actions import Actions
from tests.helpers.reports import make_alert


def alert(kind="spike", severity="critical"):
    return make_alert(kind=kind, severity=severity)


BOTH = {"nonfinite:critical": "stop", "critical": "checkpoint"}


@pytest.mark.parametrize(
    ("on_alert", "kind", "severity", "wanted"),
    [
        (None, "spike", "critical", set()),
        ("stop", "spike", "critical", {"stop"}),
        ("stop", "spike", "warn", set()),
        (["checkpoint", "stop"], "spike", "critical", {"checkpoint", "stop"}),
        (BOTH, "nonfinite", "critical", {"stop"}),
        (BOTH, "spike", "critical", {"checkpoint"}),
        (BOTH, "nonfinite", "warn", set()),
        ({"spike": "checkpoint", "critical": "stop"}, "spike", "critical", {"checkpoint"}),
        ({"spike:critical": None, "critical": "stop"}, "spike", "critical", set()),
        ({"*": "checkpoint"}, "drift", "info", {"checkpoint"}),
    ],
)
def test_the_most_specific_key_decides(on_alert, kind, severity, wanted):
    assert Actions(on_alert)([alert(kind, severity)]) == wanted


def test_what_is_muted_asks_for_nothing():
    muted = replace(alert(), muted=True)
    assert Actions("stop")([muted]) == set()
    assert Actions("stop")([muted, alert()]) == {"stop"}


def test_a_function_sees_every_alert_and_may_answer():
    seen = []

    def judge(one):
        seen.append(one.kind)
        return "stop" if one.kind == "surge" else None

    actions = Actions(judge)
    assert actions([alert("spike", "warn"), alert("drift", "info")]) == set()
    assert actions([alert("spike", "warn"), alert("surge", "warn")]) == {"stop"}
    assert seen == ["spike", "drift", "spike", "surge"]


def test_a_function_that_fails_does_not_take_other_actions_with_it():
    failures = []

    def broken(_):
        raise RuntimeError("mine")

    def guarded(function, *args):
        try:
            return function(*args)
        except RuntimeError as error:
            failures.append(error)

    actions = Actions({"spike": broken, "nonfinite": "stop"})
    assert actions([alert("spike"), alert("nonfinite")], guarded) == {"stop"}
    assert len(failures) == 1
    with pytest.raises(RuntimeError, match="mine"):
        actions([alert("spike")])


def test_what_a_function_answers_is_checked():
    with pytest.raises(ValueError, match="returned 'halt'"):
        Actions(lambda _: "halt")([alert()])


def my_rule(report):
    return None


def test_keys_may_name_rules_of_the_users():
    rules = {"own": my_rule}
    assert Actions({"my_rule": "stop"}, rules)([alert("my_rule", "warn")]) == {"stop"}


@pytest.mark.parametrize(
    ("on_alert", "message"),
    [
        ("halt", r"on_alert\['critical'\] is 'halt': give 'checkpoint' or 'stop'"),
        ({"spyke": "stop"}, "unknown key of on_alert 'spyke': did you mean 'spike'"),
        ({"spike:bad": "stop"}, "unknown severity in on_alert 'bad'"),
        ({"my_rule": "stop"}, "unknown key of on_alert 'my_rule'"),
    ],
)
def test_what_cannot_work_is_said_at_setup(on_alert, message):
    with pytest.raises(ValueError, match=message):
        Actions(on_alert)
