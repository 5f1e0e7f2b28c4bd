"""A `Monitor` from a TOML file, the environment and code, in rising precedence."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re

import pytest
import torch

from klmonitor import Monitor, Penalty
from klmonitor.hooks.options import Options
from klmonitor.monitor.configuration import OF_ATTACH, OF_CODE, monitor_settings

FILE = """
[klmonitor]
run_dir = "{folder}/from_file"
half_life = 50
groups = ["math", "code"]
clip_range = [0.8, 1.28]
notes = {{ old_ref = "as the file says" }}
[klmonitor.rules]
limit = {{ warn = 0.01 }}
[klmonitor.penalty]
estimator = "k3"
beta = 0.04
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "klmonitor.toml"
    path.write_text(FILE.format(folder=tmp_path))
    return path


def test_a_file_makes_the_monitor_that_its_keys_as_arguments_make(file, tmp_path):
    lp = -torch.rand(4, 8, generator=torch.Generator().manual_seed(0)) - 0.1
    told = []
    for monitor in (
        Monitor.from_config(file),
        Monitor(
            tmp_path / "by_hand",
            half_life=50,
            groups=["math", "code"],
            clip_range=[0.8, 1.28],
            notes={"old_ref": "as the file says"},
            rules={"limit": {"warn": 0.01}},
            penalty=Penalty("k3", beta=0.04),
        ),
    ):
        monitor.observe(policy=lp, old=lp - 0.01, ref=lp - 0.2, group="math")
        numbers = monitor.step(1).scalars()
        told.append({name: value for name, value in numbers.items() if value == value})
        monitor.close()
    assert told[0] == told[1]
    assert {"kl/policy_ref/penalty/effective_beta", "kl/policy_ref/group/math/k1/mean"} <= set(
        told[0]
    )
    rows = [
        json.loads((tmp_path / name / "run.json").read_text()) for name in ("from_file", "by_hand")
    ]
    assert rows[0]["meta"] == rows[1]["meta"]
    rules = [row["starts"][0]["rules"] for row in rows]
    assert rules[0] == rules[1]
    assert rules[0]["thresholds"]["limit"]["warn"] == 0.01


def test_code_goes_before_the_environment_and_that_before_the_file(file, tmp_path):
    environ = {"KLMONITOR_HALF_LIFE": "60", "KLMONITOR_RUN_DIR": "/elsewhere"}
    found = monitor_settings(Monitor, file, {"run_dir": tmp_path}, environ)
    assert (found["run_dir"], found["half_life"], found["groups"]) == (
        tmp_path,
        60,
        ["math", "code"],
    )


def test_the_variable_names_the_file_unless_code_does(file, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text("[klmonitor]\nhalf_life = 7\n")
    environ = {"KLMONITOR_CONFIG": str(other)}
    assert monitor_settings(Monitor, None, {}, environ) == {"half_life": 7}
    assert monitor_settings(Monitor, file, {}, environ)["half_life"] == 50


def test_with_nothing_it_is_the_default_monitor(monkeypatch):
    monkeypatch.delenv("KLMONITOR_CONFIG", raising=False)
    assert monitor_settings(Monitor, None, {}, {"PATH": "/bin"}) == {}
    assert Monitor.from_config().run_dir is None


def test_what_is_no_data_is_given_in_code(file):
    found = monitor_settings(Monitor, None, {"process_group": False}, {})
    assert found == {"process_group": False}
    file.write_text("[klmonitor]\nprocess_group = false\n")
    with pytest.raises(ValueError, match="unknown option 'process_group'"):
        monitor_settings(Monitor, file, {}, {})


@pytest.mark.parametrize(
    ("text", "environ", "given", "said"),
    [
        (
            "half_lif = 3",
            {},
            {},
            r"klmonitor.toml: unknown option 'half_lif': did you mean 'half_l",
        ),
        ("", {"KLMONITOR_METRIC": "full"}, {}, "KLMONITOR_METRIC: .*did you mean 'metrics'"),
        ("", {}, {"run_dirr": "x"}, "Monitor.from_config: .*did you mean 'run_dir'"),
        ("on_alert = 'stop'", {}, {}, "on_alert is an option of attach.. alone: act on report.al"),
        ("", {"KLMONITOR_ON_ALERT": "stop"}, {}, "KLMONITOR_ON_ALERT: on_alert is an option of"),
        ("run_dir = true", {}, {}, "run_dir is True: give a path"),
        ("penalty = {bta = 1}", {}, {}, "penalty: .*bta"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(text, environ, given, said, tmp_path):
    path = tmp_path / "klmonitor.toml"
    path.write_text(f"[klmonitor]\n{text}\n")
    with pytest.raises(ValueError, match=said):
        monitor_settings(Monitor, path, given, environ)


def test_no_record_can_be_said_in_every_place(tmp_path):
    path = tmp_path / "klmonitor.toml"
    path.write_text("[klmonitor]\nrun_dir = false\n")
    assert monitor_settings(Monitor, path, {}, {})["run_dir"] is None
    assert monitor_settings(Monitor, None, {}, {"KLMONITOR_RUN_DIR": "none"})["run_dir"] is None


def test_the_options_of_attach_and_of_a_monitor_are_told_apart():
    """One that is added to either has its place here."""
    of_monitor = set(inspect.signature(Monitor).parameters)
    of_attach = {field.name for field in dataclasses.fields(Options)}
    assert set(OF_ATTACH) == of_attach - of_monitor
    assert set(OF_CODE) < of_monitor - of_attach
    plain = re.compile("Callable|Ranks|Words|Annotate|ExtraValues")
    arguments = inspect.signature(Monitor).parameters.values()
    code = {one.name for one in arguments if plain.search(str(one.annotation))}
    assert code - {"sinks"} == set(OF_CODE), "a file holds no function"
