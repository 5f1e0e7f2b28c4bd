"""Attaching, describing, detaching; what is refused; what happens when we fail."""

import logging

import pytest
from trl import SFTTrainer

from klmonitor.attachment import attach
from klmonitor.boundary import PATIENCE
from klmonitor_trl import KLMonitorCallback


def test_detach_restores_the_trainer(make_trainer):
    trainer = make_trainer(beta=0.04)
    attributes, callbacks = dict(vars(trainer)), list(trainer.callback_handler.callbacks)
    handle = attach(trainer)
    assert vars(trainer).keys() - attributes.keys() == {
        "compute_loss",
        "log",
        "_generate_and_score_completions",
        "_get_per_token_logps_and_entropies",
    }
    handle.detach()
    assert vars(trainer) == attributes
    assert trainer.callback_handler.callbacks == callbacks
    handle.detach()
    attach(trainer).detach()


def test_detach_restores_what_the_user_had_put_there(make_trainer):
    trainer = make_trainer(beta=0.04)
    inner = trainer.log

    def users(*args, **kwargs):
        return inner(*args, **kwargs)

    trainer.log = users
    attach(trainer).detach()
    assert trainer.log is users


def test_detach_under_a_later_wrapper_leaves_it_and_passes_through(make_trainer):
    trainer = make_trainer(2, beta=0.04)
    handle = attach(trainer)
    ours, calls = trainer.log, []

    def later(*args, **kwargs):
        calls.append(args)
        return ours(*args, **kwargs)

    trainer.log = later
    handle.detach()
    trainer.train()
    assert trainer.log is later
    assert calls
    assert not any(key.startswith("kl/") for row in trainer.state.log_history for key in row)


def test_it_says_what_it_bound(make_trainer, tmp_path, capsys):
    handle = attach(make_trainer(beta=0.04), run_dir=tmp_path / "record")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "watching GRPOTrainer" in said[0]
    assert "policy_ref" in said[0]
    assert str(tmp_path / "record") in said[0]
    text = handle.describe()
    assert "TRL's reference, beta = 0.04" in text
    assert "judged  policy_ref: 0 steps with its tokens so far; surge judges from the 11th" in text
    assert "not held: every step trains on fresh samples" in text
    assert "no vLLM" in text


def test_the_record_is_in_the_output_directory_by_default(make_trainer):
    trainer = make_trainer(2, beta=0.04)
    handle = attach(trainer)
    trainer.train()
    handle.detach()
    lines = (trainer_dir(trainer) / "klmonitor" / "steps.jsonl").read_text().splitlines()
    assert len(lines) == 2


def test_no_record_when_told_so(make_trainer):
    trainer = make_trainer(1, beta=0.04)
    handle = attach(trainer, run_dir=False)
    trainer.train()
    handle.detach()
    assert not (trainer_dir(trainer) / "klmonitor").exists()


def trainer_dir(trainer):
    from pathlib import Path

    return Path(trainer.args.output_dir)


def test_the_callback_finds_its_trainer(make_trainer):
    callback = KLMonitorCallback()
    trainer = make_trainer(3, beta=0.04, callbacks=[callback])
    assert callback.handle is None
    trainer.train()
    assert callback.report.step == 3
    assert callback.report.pairs["policy_ref"].k3.mean > 0
    assert "kl/policy_ref/k3/mean" in trainer.state.log_history[2]
    trainer.train()
    assert callback.handle.monitor.errors == 0
    callback.handle.detach()


def test_the_callback_logs_what_attach_logs(make_trainer):
    rows = []
    for callbacks in ([KLMonitorCallback()], None):
        trainer = make_trainer(3, beta=0.04, callbacks=callbacks)
        if callbacks is None:
            attach(trainer)
        trainer.train()
        rows.append(
            [
                {key: value for key, value in row.items() if key.startswith("kl")}
                for row in trainer.state.log_history
            ]
        )
    assert rows[0] == rows[1]
    assert len(rows[0][2]) > 5


def test_attaching_twice_is_refused(make_trainer):
    trainer = make_trainer(beta=0.04)
    attach(trainer)
    with pytest.raises(ValueError, match="watched already"):
        attach(trainer)


def test_an_unknown_trainer_is_refused():
    class Trainer:
        pass

    with pytest.raises(TypeError) as caught:
        attach(Trainer())
    message = str(caught.value)
    assert "Trainer" in message
    assert "trl" in message
    assert "watch.observe" in message, "the recipe of a plain loop"


def test_a_trl_trainer_without_log_probs_is_refused():
    trainer = SFTTrainer.__new__(SFTTrainer)
    with pytest.raises(TypeError, match=r"SFTTrainer .* has no _generate_and_score_completions"):
        attach(trainer)


def test_an_unknown_option_is_refused(make_trainer):
    with pytest.raises(TypeError, match="unknown option 'refrence': choose from run_dir"):
        attach(make_trainer(), refrence=None)
    with pytest.raises(TypeError, match="unknown option"):
        KLMonitorCallback(metric="core")
    with pytest.raises(ValueError, match="reference_every = 0"):
        KLMonitorCallback(reference_every=0)


def test_the_environment_turns_it_off(make_trainer, monkeypatch):
    monkeypatch.setenv("KLMONITOR_DISABLE", "1")
    trainer = make_trainer(1, beta=0.04)
    attributes = dict(vars(trainer))
    handle = attach(trainer)
    assert vars(trainer) == attributes
    trainer.train()
    assert "off" in handle.describe()
    assert not any(key.startswith("kl/") for key in trainer.state.log_history[0])


@pytest.mark.parametrize("broken", ["observe", "take_logged", "step"])
def test_our_failure_is_counted_and_training_goes_on(make_trainer, monkeypatch, caplog, broken):
    plain = make_trainer(5, beta=0.04)
    plain.train()
    trainer = make_trainer(5, beta=0.04)
    handle = attach(trainer)

    def fails(*args, **kwargs):
        raise RuntimeError("planted failure")

    monkeypatch.setattr(handle.monitor, broken, fails)
    with caplog.at_level(logging.WARNING, logger="klmonitor"):
        trainer.train()
    losses = [row.get("loss") for row in trainer.state.log_history]
    assert losses == [row.get("loss") for row in plain.state.log_history]
    said = [record.getMessage() for record in caplog.records]
    assert len([one for one in said if "failed" in one and "planted failure" in one]) == 1
    told = [one for one in said if "inactive: klmonitor misses log-probs" in one]
    assert len(told) == (broken == "observe"), "an alert too, where numbers are missing"
    assert handle.monitor.errors >= 3


def test_strict_raises(make_trainer, monkeypatch):
    trainer = make_trainer(2, beta=0.04)
    handle = attach(trainer, strict=True)
    monkeypatch.setattr(handle.monitor, "observe", lambda **given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.train()


def test_a_loss_without_log_probs_is_noticed(make_trainer, caplog):
    trainer = make_trainer(PATIENCE + 2, beta=0.04)
    untouched = trainer._get_per_token_logps_and_entropies
    handle = attach(trainer)
    trainer._get_per_token_logps_and_entropies = untouched
    with caplog.at_level(logging.WARNING, logger="klmonitor"):
        trainer.train()
    said = [record.getMessage() for record in caplog.records if "klmonitor" in record.getMessage()]
    assert len(said) == 2, "the failure, and the alert that numbers are missing"
    assert all("was not called" in one for one in said)
    assert "klmonitor [warn] step 5 inactive" in said[1]
    assert handle.monitor.errors == PATIENCE
    assert "given up: loss" in handle.describe()
