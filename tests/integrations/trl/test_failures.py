"""Real runs whose record cannot be written: training is unaffected, the log row is still fed."""

from __future__ import annotations

import logging
import os

import pytest

from klmonitor.attachment import attach


@pytest.fixture(scope="module")
def losses_alone(model_path, tmp_path_factory):
    from klmonitor_trl.demo import tiny

    trainer = tiny.make_trainer(model_path, tmp_path_factory.mktemp("alone"), steps=4, beta=0.04)
    trainer.train()
    return losses(trainer)


def losses(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def full(path):
    path.symlink_to("/dev/full")


def stalled(path):
    """A named pipe that somebody opened and never reads."""
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        while True:
            os.write(descriptor, b"x" * 65536)
    except BlockingIOError:
        pass
    return descriptor


@pytest.mark.parametrize("break_it", [full, stalled])
def test_a_record_that_cannot_be_written(break_it, make_trainer, tmp_path, caplog, losses_alone):
    run_dir = tmp_path / "record"
    run_dir.mkdir()
    descriptor = break_it(run_dir / "steps.jsonl")
    trainer = make_trainer(beta=0.04)
    with caplog.at_level(logging.WARNING, "klmonitor"):
        handle = attach(trainer, run_dir=run_dir)
        trainer.train()
        handle.detach()
    found = [r for r in caplog.records if r.levelno >= logging.WARNING]
    warnings = [r for r in found if "step " not in r.getMessage()]  # an alert says it, too
    if descriptor is not None:
        os.close(descriptor)
    assert losses(trainer) == losses_alone
    rows = [row for row in trainer.state.log_history if "kl/policy_ref/k3/mean" in row]
    assert len(rows) == 4
    assert len(warnings) == 1, [r.getMessage() for r in warnings]
