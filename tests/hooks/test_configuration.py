"""Options from a command line, the environment and a file, in that precedence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klmonitor import Penalty
from klmonitor.hooks.configuration import load_options, option_names

FILE = """
[klmonitor]
metrics = "full"
half_life = 50
rules = "sensitive"
[klmonitor.on_alert]
critical = "stop"
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "klmonitor.toml"
    path.write_text(FILE)
    return {"KLMONITOR_CONFIG": str(path)}


def test_nothing_given_is_the_defaults():
    assert load_options({}, {}) == load_options(None, {"PATH": "/bin", "KLMONITOR_DISABLE": "0"})


def test_the_command_line_goes_before_the_environment_and_that_before_the_file(file):
    environ = {**file, "KLMONITOR_HALF_LIFE": "60", "KLMONITOR_RUN_DIR": "/elsewhere"}
    found = load_options({"run_dir": "/here"}, environ)
    assert (found.run_dir, found.half_life, found.metrics) == ("/here", 60, "full")
    assert found.on_alert == {"critical": "stop"}


@given(given_in=st.sets(st.sampled_from(["line", "variable", "file"])))
def test_whatever_is_given_the_first_that_is_there_counts(given_in, tmp_path_factory):
    path = tmp_path_factory.mktemp("options") / "a.toml"
    path.write_text("[klmonitor]\nhalf_life = 3\n" if "file" in given_in else "[klmonitor]\n")
    environ = {"KLMONITOR_CONFIG": str(path)}
    if "variable" in given_in:
        environ["KLMONITOR_HALF_LIFE"] = "2"
    line = {"half_life": 1} if "line" in given_in else {}
    order = [(1, "line"), (2, "variable"), (3, "file")]
    wanted = next((value for value, name in order if name in given_in), 100)
    assert load_options(line, environ).half_life == wanted


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("false", False),
        ("True", True),
        ("none", None),
        ("/runs/a", "/runs/a"),
        ('"/runs/a"', "/runs/a"),
    ],
)
def test_a_variable_is_read_as_json_where_it_is_some(text, value):
    assert load_options({}, {"KLMONITOR_RUN_DIR": text}).run_dir == value


def test_lists_in_a_variable():
    found = load_options({}, {"KLMONITOR_GROUPS": "math, code", "KLMONITOR_SINKS": '["console"]'})
    assert found.groups == ["math", "code"]
    assert found.sinks == ["console"]


@pytest.mark.parametrize(
    ("given", "environ", "said"),
    [
        ({"run_dirr": "x"}, {}, "command line: unknown option 'run_dirr': did you mean 'run_dir'"),
        ({}, {"KLMONITOR_METRIC": "full"}, "KLMONITOR_METRIC: .*did you mean 'metrics'"),
        ({}, {"KLMONITOR_CONFIG": "/none/there"}, "cannot read /none/there"),
    ],
)
def test_what_is_unknown_is_refused_with_the_nearest_name(given, environ, said):
    with pytest.raises(ValueError, match=said):
        load_options(given, environ)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[klmonitor]\nhalf_lif = 3\n", "did you mean 'half_life'"),
        ("half_life = 3\n", r"no table \[klmonitor\]"),
        ("[klmonitor\n", "KLMONITOR_CONFIG"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(text, said, tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        load_options({}, {"KLMONITOR_CONFIG": str(path)})


def test_a_variable_of_the_users_own_is_none_of_ours():
    load_options({}, {"KLMONITOR_SLACK_HOOK": "https://example.org", "KLMONITOR_CACHE_DIR": "/x"})


def test_a_penalty_is_a_table_or_one_a_pair():
    term = {"estimator": "k2", "beta": 0.1}
    assert load_options({"penalty": term}, {}).penalty == Penalty("k2", beta=0.1)
    both = load_options({"penalty": {"old_ref": term}}, {}).penalty
    assert both == {"old_ref": Penalty("k2", beta=0.1)}
    with pytest.raises(ValueError, match=r"penalty: .*bta"):
        load_options({"penalty": {"bta": 1}}, {})


def test_every_option_can_be_given():
    assert {"run_dir", "metrics", "rules", "on_alert", "penalty", "strict"} <= set(option_names())
