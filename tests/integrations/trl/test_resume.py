"""Checkpoints: a resumed run continues as if it had not been interrupted."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import TrainerCallback

from klmonitor.attachment import attach
from klmonitor.record import read_run
from klmonitor_trl import KLMonitorCallback

SAVING = {"save_strategy": "steps", "save_steps": 4, "beta": 0.04}


def fields(report):
    """Every field but wall time; nan as a word, so that it equals itself."""
    plain = dataclasses.replace(report, time=0.0)
    return json.dumps(dataclasses.asdict(plain), sort_keys=True, default=str)


def checkpoint(trainer, step=4):
    return str(Path(trainer.args.output_dir) / f"checkpoint-{step}")


class StopError(Exception):
    pass


class StopAfter(TrainerCallback):
    """The process dies after a step: nothing of ours is closed or saved."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise StopError


@pytest.fixture(scope="module")
def uninterrupted(watch):
    return watch(steps=8, **SAVING)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_resumed_run_reports_what_the_uninterrupted_one_does(
    uninterrupted, make_trainer, replaced, watched_class
):
    killed = make_trainer(8, **SAVING)
    first = watched_class(killed)
    killed.add_callback(StopAfter(6))
    with pytest.raises(StopError):
        killed.train()
    directory = Path(killed.args.output_dir) / "klmonitor"
    first.handle.monitor.flush()

    resumed = make_trainer(8, restore_callback_states_from_checkpoint=replaced, **SAVING)
    second = watched_class(resumed, run_dir=directory)
    before = next(
        one for one in resumed.callback_handler.callbacks if isinstance(one, KLMonitorCallback)
    )
    resumed.train(resume_from_checkpoint=checkpoint(killed))
    assert second.handle.monitor.errors == 0
    after = [
        one for one in resumed.callback_handler.callbacks if isinstance(one, KLMonitorCallback)
    ]
    assert len(after) == 1
    assert (after[0] is before) == (not replaced)
    for step in range(5, 9):
        expected = uninterrupted.reports["train", step]
        assert fields(second.reports["train", step]) == fields(expected), step
        assert resumed.state.log_history[step - 1]["kl"] == uninterrupted.rows[step]["kl"]
    values = second.reports["train", 8].pairs["policy_ref"]
    assert values.k3.running_var > 0
    assert math.isfinite(values["k3/running_mean"])

    second.handle.detach()
    whole = read_run(Path(uninterrupted.trainer.args.output_dir) / "klmonitor")
    spliced = read_run(directory)
    assert [report.step for report in spliced.reports] == list(range(1, 9))
    for one, other in zip(whole.reports, spliced.reports, strict=True):
        assert one.pairs["policy_ref"].values == pytest.approx(
            other.pairs["policy_ref"].values, rel=0, abs=0, nan_ok=True
        )
    assert resumed.callback_handler.callbacks == [
        one for one in resumed.callback_handler.callbacks if not isinstance(one, KLMonitorCallback)
    ]


KILLED = """
import os, signal, sys, time
import torch
from transformers import TrainerCallback
from klmonitor.attachment import attach
from klmonitor.background import NAP_SECONDS
from klmonitor.summary.passes import TOKENS
from klmonitor_trl.demo import tiny

assert TOKENS.loader.wait(300)  # bits change where the compiled pass takes over

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        time.sleep(1.5 * NAP_SECONDS)  # of quicker steps the last few rows may be lost
        if state.global_step == 6:
            os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
trainer = tiny.make_trainer(*sys.argv[1:], steps=8, save_strategy="steps", save_steps=4, beta=0.04)
attach(trainer)
trainer.add_callback(Kill())
trainer.train()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill a process so")
def test_a_process_that_was_killed_is_continued_to_the_same_record(
    uninterrupted, make_trainer, model_path, watched_class, tmp_path
):
    command = [sys.executable, "-c", KILLED, str(model_path), str(tmp_path)]
    died = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert died.returncode == -signal.SIGKILL, died.stderr
    left = read_run(tmp_path / "klmonitor")
    assert [report.step for report in left.reports] in ([*range(1, 6)], [*range(1, 7)])

    resumed = make_trainer(8, **SAVING)
    watched = watched_class(resumed, run_dir=tmp_path / "klmonitor")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    for step in range(5, 9):
        expected = uninterrupted.reports["train", step]
        assert fields(watched.reports["train", step]) == fields(expected), step
    watched.handle.detach()
    whole = read_run(Path(uninterrupted.trainer.args.output_dir) / "klmonitor")
    spliced = read_run(tmp_path / "klmonitor")
    assert spliced.bad_lines == 0
    assert [fields(report) for report in spliced.reports] == [
        fields(report) for report in whole.reports
    ]


def test_away_from_a_generation_boundary_the_saved_state_is_restored(make_trainer):
    config = {**SAVING, "save_steps": 3, "num_iterations": 2}
    trainer = make_trainer(4, **config)
    attach(trainer)
    trainer.train()
    kept = json.loads((Path(checkpoint(trainer, 3)) / "trainer_state.json").read_text())
    saved = kept["stateful_callbacks"]["KLMonitorCallback"]["attributes"]["saved"]
    assert saved["running"]

    states = []

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            states.append(handle.monitor.state_dict())

    resumed = make_trainer(4, **config)
    handle = attach(resumed)
    fresh = handle.monitor.state_dict()
    resumed.add_callback(Look())
    resumed.train(resume_from_checkpoint=checkpoint(trainer, 3))
    assert json.dumps(states[0], sort_keys=True) == json.dumps(saved, sort_keys=True)
    assert json.dumps(fresh, sort_keys=True) != json.dumps(saved, sort_keys=True)


def test_a_checkpoint_of_an_unwatched_run_can_be_continued_and_saved(make_trainer):
    before = make_trainer(4, **SAVING)
    before.train()
    after = make_trainer(8, **SAVING)
    handle = attach(after)
    after.train(resume_from_checkpoint=checkpoint(before))
    kept = json.loads((Path(checkpoint(after, 8)) / "trainer_state.json").read_text())
    assert kept["stateful_callbacks"]["KLMonitorCallback"]["attributes"]["saved"]["running"]
    assert handle.monitor.errors == 0


def test_a_checkpoint_of_a_watched_run_can_be_continued_unwatched(uninterrupted, make_trainer):
    plain = make_trainer(5, **{**SAVING, "save_steps": 1})
    plain.train(resume_from_checkpoint=checkpoint(uninterrupted.trainer))
    assert plain.state.global_step == 5


def test_a_replaced_callback_keeps_the_options_of_the_first(make_trainer):
    trainer = make_trainer(4, callbacks=[KLMonitorCallback(half_life=3.0)], **SAVING)
    trainer.train()
    mine = KLMonitorCallback(half_life=3.0, run_dir=False, metrics=["k3/mean"])
    resumed = make_trainer(
        6, callbacks=[mine], restore_callback_states_from_checkpoint=True, **SAVING
    )
    resumed.train(resume_from_checkpoint=checkpoint(trainer))
    assert not (Path(resumed.args.output_dir) / "klmonitor").exists()
    keys = {key for key in resumed.state.log_history[-2] if key.startswith("kl/")}
    assert keys == {"kl/policy_ref/k3/mean"}


def test_training_again_starts_at_step_1_and_keeps_the_running_numbers(make_trainer, watched_class):
    watched = watched_class(make_trainer(3, beta=0.04))
    watched.trainer.train()
    first = watched.reports["train", 3].pairs["policy_ref"].k3.running_mean
    watched.trainer.train()
    assert watched.handle.monitor.errors == 0
    assert watched.reports["train", 3].step == 3
    assert watched.reports["train", 3].pairs["policy_ref"].k3.running_mean != first


def test_detaching_in_mid_run_leaves_the_rest_of_it_alone(make_trainer):
    plain = make_trainer(5, **SAVING)
    plain.train()
    trainer = make_trainer(5, **SAVING)
    attributes, callbacks = set(vars(trainer)), len(trainer.callback_handler.callbacks)
    handle = attach(trainer)

    class LetGo(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                handle.detach()

    trainer.add_callback(LetGo())
    trainer.train()
    with_kl = [row["step"] for row in trainer.state.log_history if "kl/policy_ref/k3/mean" in row]
    assert with_kl in ([1], [1, 2])
    assert [row.get("loss") for row in trainer.state.log_history] == [
        row.get("loss") for row in plain.state.log_history
    ]
    assert len(trainer.callback_handler.callbacks) == callbacks + 1
    assert {"compute_loss", "log"}.isdisjoint(set(vars(trainer)) - attributes)
    attach(trainer).detach()
