"""Real GRPO runs of a tiny model: the same builder as the demo's."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("trl")

import torch
from transformers.utils import logging

from klmonitor.attachment import attach
from klmonitor_trl.demo import tiny

# What TRL and transformers warn of among themselves; anything else is an error.
UPSTREAM = ("ignore:.*is deprecated and will be removed in v6:FutureWarning",)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(__file__.rpartition("/")[0]):
            for line in UPSTREAM:
                item.add_marker(pytest.mark.filterwarnings(line))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def enabled(monkeypatch):
    monkeypatch.delenv("KLMONITOR_DISABLE", raising=False)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory):
    return tiny.save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def make_trainer(model_path, tmp_path_factory):
    """A GRPO trainer of the tiny model; keyword arguments as `tiny.make_trainer` takes them."""

    def make(steps=4, **config):
        return tiny.make_trainer(model_path, tmp_path_factory.mktemp("out"), steps=steps, **config)

    return make


@pytest.fixture
def lora():
    from peft import LoraConfig

    def config(**changes):
        return LoraConfig(r=4, target_modules=["q_proj", "v_proj", "lm_head"][:2], **changes)

    return config


class Watched:
    """A trainer with klmonitor attached, and every tensor that reached the monitor."""

    def __init__(self, trainer, **options):
        self.trainer = trainer
        self.handle = attach(trainer, **options)
        self.reports = {}
        self.batches = {}
        self._step = []
        monitor = self.handle.monitor
        observe, step = monitor.observe, monitor.step

        def spy_observe(**given):
            kept = {k: v.clone() if torch.is_tensor(v) else v for k, v in given.items()}
            self._step.append(kept)
            return observe(**given)

        def spy_step(number, phase="train", **options):
            report = step(number, phase=phase, **options)
            self.reports[phase, number] = report
            self.batches[phase, number] = [b for b in self._step if b["phase"] == phase]
            self._step = [b for b in self._step if b["phase"] != phase]
            return report

        monitor.observe, monitor.step = spy_observe, spy_step

    @property
    def rows(self):
        """The trainer's log by step, training rows only."""
        return {row["step"]: row for row in self.trainer.state.log_history if "loss" in row}

    def log_ratios(self, steps, phase="train", q="policy", p="ref"):
        """d = log p - log q of the unmasked tokens of some steps, float64."""
        return torch.cat(
            [
                (batch[p].double() - batch[q].double())[batch["mask"].bool()]
                for step in steps
                for batch in self.batches[phase, step]
            ]
        )


@pytest.fixture(scope="session")
def watch(make_trainer):
    """Build, attach, train: ``watch(steps=4, options={...}, **config)``."""

    def run(steps=4, options=None, **config):
        watched = Watched(make_trainer(steps, **config), **(options or {}))
        watched.trainer.train()
        return watched

    return run


def k3_mean(d):
    """The token mean of k3 in float64."""
    return math.fsum((torch.expm1(d) - d).tolist()) / d.numel()


def trl_kl(batches):
    """TRL's `kl`: the plain mean over micro-batches of their token means, in float32."""
    means = []
    for batch in batches:
        d = batch["ref"] - batch["policy"]
        per_token = torch.exp(d) - d - 1
        means.append(((per_token * batch["mask"]).sum() / batch["mask"].sum()).item())
    return sum(means) / len(means)


@pytest.fixture(scope="session")
def formulas():
    """The independent recomputations: `k3_mean` and `trl_kl`."""
    return {"k3_mean": k3_mean, "trl_kl": trl_kl}


@pytest.fixture(scope="session")
def watched_class():
    """`Watched`, for trainers that a test builds and runs itself."""
    return Watched
