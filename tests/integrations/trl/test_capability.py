"""TRL without one of its private names: training ends, one warning, and as much as can be had."""

from __future__ import annotations

import inspect
import logging
import sys
import types
from importlib.metadata import version

import pytest
import torch
from trl import GRPOTrainer, RLOOConfig, RLOOTrainer

from klmonitor_trl.names import GENERATE, LOG_PROBS

TWO_FUNCTIONS = hasattr(RLOOTrainer, GENERATE)


def without(base, *names):
    """A trainer's class as it would be if TRL had called these functions something else."""
    module = sys.modules[base.__module__]
    source = inspect.getsource(module)
    for name in names:
        assert name in source
        source = source.replace(name, "_renamed" + name)
    other = types.ModuleType(f"{base.__module__}_renamed{len(names)}")
    other.__package__, other.__file__ = module.__package__, module.__file__
    exec(compile(source, module.__file__, "exec"), vars(other))
    return getattr(other, base.__name__)


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.name.startswith("klmonitor")]


@pytest.fixture
def known():
    """The name of the log-prob function that the installed TRL has."""
    return next(name for name in LOG_PROBS if hasattr(GRPOTrainer, name))


def test_without_the_log_prob_function_the_models_outputs_are_read(watch, formulas, caplog, known):
    with caplog.at_level(logging.WARNING):
        run = watch(steps=4, beta=0.04, trainer_class=without(GRPOTrainer, known))
    said = warnings_of(caplog)
    assert len(said) == 1
    assert LOG_PROBS[0] in said[0]
    assert f"TRL {version('trl')}" in said[0]
    assert "taken from the model's outputs" in run.handle.describe()
    assert run.handle.monitor.errors == 0
    for step, row in run.rows.items():
        kl = formulas["trl_kl"](run.batches["train", step])
        assert kl == pytest.approx(row["kl"], rel=0, abs=2e-6)
        assert row["klmonitor/active"] == 1
    assert run.rows[4]["kl"] > 1e-4


def test_the_models_outputs_give_what_the_private_function_gives(watch, known):
    """At a temperature, over several updates on one generation."""
    config = {"steps": 4, "beta": 0.04, "temperature": 0.7, "num_iterations": 2}
    runs = [watch(**config), watch(**config, trainer_class=without(GRPOTrainer, known))]
    for step in range(1, 5):
        (one,), (other,) = (run.batches["train", step] for run in runs)
        mask = one["mask"].bool()
        assert one.keys() == other.keys()
        assert {"policy", "old", "ref"} <= one.keys()
        torch.testing.assert_close(one["policy"][mask], other["policy"][mask], rtol=0, atol=5e-6)


def test_without_the_generating_function_the_loss_is_enough(watch, caplog):
    with caplog.at_level(logging.WARNING):
        run = watch(steps=3, beta=0.04, trainer_class=without(GRPOTrainer, GENERATE))
    said = warnings_of(caplog)
    assert len(said) == 1
    assert GENERATE in said[0]
    assert run.rows[3]["klmonitor/active"] == 1
    pair = run.reports["train", 3].pairs["policy_ref"]
    assert pair.k3.mean > 0
    assert pair["prompts"] == 2


def test_without_either(watch, caplog, known):
    with caplog.at_level(logging.WARNING):
        run = watch(steps=3, beta=0.04, trainer_class=without(GRPOTrainer, GENERATE, known))
    said = warnings_of(caplog)
    assert len(said) == 1
    assert GENERATE in said[0]
    assert LOG_PROBS[0] in said[0]
    assert run.reports["train", 3].pairs["policy_ref"].k3.mean > 0


@pytest.mark.skipif(not TWO_FUNCTIONS, reason="this RLOO is one long train()")
@pytest.mark.parametrize("name", [GENERATE, LOG_PROBS[0]])
def test_rloo_without_a_name_is_off_and_says_so(watch, caplog, name):
    with caplog.at_level(logging.WARNING):
        run = watch(
            steps=3,
            beta=0.04,
            trainer_class=without(RLOOTrainer, name),
            config_class=RLOOConfig,
        )
    said = warnings_of(caplog)
    assert len(said) == 2, "and the alert that numbers are missing"
    assert name in said[0]
    assert "inactive: klmonitor misses log-probs" in said[1]
    assert "klmonitor is off" in said[0]
    assert [row["klmonitor/active"] for row in run.rows.values()] == [0, 0, 0]
    assert not run.reports["train", 3].pairs
    assert run.handle.monitor.errors == 0


def test_outputs_without_log_probs_are_given_up_with_a_gauge_of_0(watch, caplog, known):
    class Mute(without(GRPOTrainer, known)):
        """Reads the outputs itself, before our hook would."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.model.register_forward_hook(hide, always_call=False)

    def hide(module, inputs, output):
        keys = dict(output.items())
        for key in ("logits", "log_probs"):
            if keys.get(key) is not None:
                output[key] = Hidden(keys[key])

    class Hidden:
        """A stand-in that only the trainer can read."""

        def __init__(self, tensor):
            self.tensor = tensor

        def __getitem__(self, index):
            return self.tensor[index]

    with caplog.at_level(logging.WARNING):
        run = watch(steps=5, beta=0.04, trainer_class=Mute)
    said = warnings_of(caplog)
    assert sum(LOG_PROBS[0] in line for line in said) == 1
    assert (
        sum("loss failed" in line and "neither log_probs nor logits" in line for line in said) == 1
    )
    assert sum("inactive: klmonitor misses log-probs" in line for line in said) == 1
    assert len(said) == 3
    assert run.rows[5]["klmonitor/active"] == 0
    assert "given up: loss" in run.handle.describe()


def test_a_fused_loss_is_computed_once_more_if_asked(make_trainer, watch, known, formulas):
    from klmonitor.attachment import attach

    reports = []
    plain = watch(steps=2, beta=0.04)
    trainer = make_trainer(2, beta=0.04)
    untouched = getattr(trainer, known)
    handle = attach(trainer, recompute=True, sinks=[reports.append])
    setattr(trainer, known, untouched)  # as a fused loss, which never calls it
    trainer.train()
    assert handle.monitor.errors == 0
    for report in reports:
        expected = plain.reports["train", report.step].pairs["policy_ref"]
        got = report.pairs["policy_ref"]
        assert got.k3.mean == pytest.approx(expected.k3.mean, abs=1e-7)
    assert plain.rows[2]["loss"] == trainer.state.log_history[1]["loss"]
