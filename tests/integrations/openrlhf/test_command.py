"""The command: whose arguments are whose, what is refused, what Ray is given; needs no OpenRLHF."""

from __future__ import annotations

import json
import sys
import types

import pytest

from klmonitor.hooks.configuration import GIVEN, load_options
from klmonitor_openrlhf import attach, command, setup
from klmonitor_openrlhf.command import check, main, split

THEIRS = ["--actor.eps_clip_low_high", "0.2", "0.28", "--algo.kl.use_loss", "--data.label_key", "x"]


def test_ours_are_taken_out_and_theirs_are_left_as_they_are():
    own, theirs = split(
        [
            *THEIRS[:3],
            "--klmonitor.on_alert",
            "stop",
            *THEIRS[3:],
            '--klmonitor.rules={"limit": {"warn": 0.1}}',
            "--klmonitor.strict",
            "--klmonitor.half_life",
            "50",
        ]
    )
    assert theirs == THEIRS
    assert own == {
        "on_alert": "stop",
        "rules": {"limit": {"warn": 0.1}},
        "strict": True,
        "half_life": 50,
    }
    assert load_options(own, {}).half_life == 50


def test_a_flag_of_ours_does_not_swallow_theirs():
    assert split(["--klmonitor.strict", "--algo.kl.use_loss"]) == (
        {"strict": True},
        ["--algo.kl.use_loss"],
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--klmonitor.run_dirr", "x"], "did you mean 'run_dir'"),
        (["--klmonitor.metrics=x", "--klmonitor.metrics=y"], "given twice"),
        (["--klmonitor.on_alert", "halt"], "on_alert"),
        (["--klmonitor.metrics", "most"], "metrics"),
        (["--klmonitor.rules", '{"limmit": {}}'], "limmit"),
        (["--klmonitor.groups", "math,code"], "none of OpenRLHF's"),
        (["--klmonitor.reference", "none"], "none of OpenRLHF's"),
        (["--klmonitor.audit_every", "50"], "none of OpenRLHF's"),
        (["--klmonitor.penalty", '{"estimator": "k4"}'], "k4"),
    ],
)
def test_what_cannot_work_ends_the_command_before_anything_starts(arguments, said, capsys):
    assert main([*THEIRS, *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_variable_that_cannot_work_does_so_too(monkeypatch, capsys):
    monkeypatch.setenv("KLMONITOR_RUN_DIRR", "x")
    assert main(THEIRS) == 2
    assert "KLMONITOR_RUN_DIRR" in capsys.readouterr().err


def test_without_openrlhf_the_command_says_where_it_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert main(THEIRS) == 2
    assert sys.executable in capsys.readouterr().err


class Ray(types.ModuleType):
    """As far as OpenRLHF's own command calls it."""

    def __init__(self):
        super().__init__("ray")
        self.given = None

    def is_initialized(self):
        return self.given is not None

    def init(self, *args, **kwargs):
        self.given = kwargs


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Run the command with a stand-in for the trainer's, which starts Ray as that does."""
    ray = Ray()
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(command, "find_spec", lambda name: object())

    def run(arguments, **init):
        def trainer(module, run_name, alter_sys):
            assert (module, run_name) == ("openrlhf.cli.train_ppo_ray", "__main__")
            ray.arguments = sys.argv[1:]
            ray.init(**init)

        monkeypatch.setattr(sys, "argv", [])
        monkeypatch.setattr(command.runpy, "run_module", trainer)
        assert main(arguments) == 0
        return ray

    return run


def test_every_process_is_given_the_hooks_and_the_trainers_own_variables(
    started, monkeypatch, tmp_path
):
    file = tmp_path / "klmonitor.toml"
    file.write_text('[klmonitor]\nmetrics = "full"\nhalf_life = 7\n')
    monkeypatch.setenv("KLMONITOR_CONFIG", str(file))
    monkeypatch.setenv("KLMONITOR_CACHE_DIR", "/kernels")
    monkeypatch.setenv("KLMONITOR_SECRET_HOOK", "https://never.sent")
    own = {"TOKENIZERS_PARALLELISM": "true", "NCCL_DEBUG": "WARN"}
    ray = started(
        [*THEIRS, "--klmonitor.half_life=9"], runtime_env={"env_vars": own, "working_dir": "."}
    )
    assert ray.arguments == THEIRS
    env = ray.given["runtime_env"]
    assert env["worker_process_setup_hook"] == "klmonitor_openrlhf.setup"
    assert env["working_dir"] == "."
    given = json.loads(env["env_vars"].pop(GIVEN))
    assert env["env_vars"] == {**own, "KLMONITOR_CACHE_DIR": "/kernels"}
    assert given == {"metrics": "full", "half_life": 9}
    assert load_options(given, {}).half_life == 9


def test_the_trainers_start_without_an_environment_gets_ours(started):
    env = started(THEIRS).given["runtime_env"]
    assert set(env["env_vars"]) == {GIVEN}


def test_switched_off_nothing_is_hooked(started, monkeypatch):
    monkeypatch.setenv("KLMONITOR_DISABLE", "1")
    ray = started([*THEIRS, "--klmonitor.strict"], runtime_env={"env_vars": {}})
    assert ray.given == {"runtime_env": {"env_vars": {}}}
    assert ray.arguments == THEIRS


def test_the_hook_of_a_process_never_raises(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "klmonitor_openrlhf.plugin", None)
    monkeypatch.delattr("klmonitor_openrlhf.plugin", raising=False)
    setup()
    assert "hooks failed" in caplog.text
    caplog.clear()
    monkeypatch.setenv("KLMONITOR_DISABLE", "1")
    setup()
    assert caplog.text == ""


def test_attach_says_what_to_do_instead():
    with pytest.raises(TypeError, match="python -m klmonitor_openrlhf"):
        attach(object())


def test_a_penalty_of_the_users_own_is_taken():
    check(load_options({"penalty": {"estimator": "k2", "beta": 0.1}}, {}))
