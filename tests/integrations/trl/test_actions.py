"""`on_alert` on real runs: TRL stops, and saves, at the step that asked for it."""

from pathlib import Path

import pytest


def alarm(step):
    """A rule of the user's that finds something at one step."""

    def always_at(report):
        return f"step {step} it is" if report.step == step else None

    return always_at


@pytest.fixture(scope="module")
def run(make_trainer):
    """``run(on_alert, steps=6, at=3)``: train with a rule that fires once."""
    from klmonitor import attach

    def train(on_alert, steps=6, at=3):
        trainer = make_trainer(steps, beta=0.04, save_strategy="no")
        options = {"rules": {"own": alarm(at)}, "on_alert": on_alert, "run_dir": None}
        handle = attach(trainer, **options)
        trainer.train()
        handle.detach()
        return trainer, handle

    return train


def checkpoints(trainer):
    return sorted(path.name for path in Path(trainer.args.output_dir).glob("checkpoint-*"))


def test_training_stops_at_the_step_of_the_alert(run):
    trainer, _ = run({"always_at": "stop"})
    assert trainer.state.global_step == 3
    assert checkpoints(trainer) == []


def test_a_checkpoint_is_saved_at_the_step_of_the_alert_and_training_goes_on(run):
    trainer, _ = run({"always_at:warn": "checkpoint", "critical": "stop"})
    assert trainer.state.global_step == 6
    assert checkpoints(trainer) == ["checkpoint-3"]


def test_both_and_a_function(run, capfd):
    seen = []

    def decide(alert):
        seen.append((alert.step, alert.kind))
        return ["checkpoint", "stop"]

    trainer, _ = run(decide)
    assert seen == [(3, "always_at")]
    assert trainer.state.global_step == 3
    assert checkpoints(trainer) == ["checkpoint-3"]
    assert "klmonitor: on_alert: stop, as step 3 asks for it" in capfd.readouterr().err


def test_a_function_that_raises_is_counted_and_training_goes_on(run, caplog):
    def broken(alert):
        raise RuntimeError("mine")

    trainer, handle = run(broken)
    assert trainer.state.global_step == 6
    assert handle.monitor.errors == 1
    assert "action failed" in caplog.text


def test_alerts_of_a_run_are_delivered(make_trainer, monkeypatch, tmp_path):
    from klmonitor import attach
    from tests.helpers.webhooks import hook

    with hook() as server:
        monkeypatch.setenv("KLM_HOOK", server.url)
        trainer = make_trainer(4, beta=0.04)
        options = {"rules": {"own": alarm(2)}, "notify": "env:KLM_HOOK", "run_dir": tmp_path}
        handle = attach(trainer, **options)
        trainer.train()
        handle.detach()
        [got] = server.got
    assert got["alert"]["step"] == 2
    assert got["run"] == str(tmp_path)


def test_an_action_that_does_not_exist_fails_at_setup(make_trainer):
    from klmonitor import attach

    with pytest.raises(ValueError, match="on_alert"):
        attach(make_trainer(2), on_alert={"critical": "halt"})
