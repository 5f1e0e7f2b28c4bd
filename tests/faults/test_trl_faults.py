"""Faults in real TRL runs: nothing reaches training, and the weights stay as they are without us.

Two runs here; `make test-faults` (KLMONITOR_FAULTS=all) makes 40 on one process and 20 on two
ranks.
"""

from __future__ import annotations

import os
import random
from importlib.util import find_spec

import pytest
import torch

from tests.faults.sites import ERRORS, SITES, Faults
from tests.faults.test_monitor_faults import ALL
from tests.helpers.ranks import run_ranks

STEPS = 6
RUNS, RUNS_ON_RANKS = (40, 20) if ALL else (2, 0)
AT_ONCE = 3


pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # what TRL says of itself
    pytest.mark.skipif(find_spec("trl") is None, reason="trl is not installed"),
]


def train(model, out, faults=None, targets=()):
    """The weights that a run ends with, the calls of sites, and the faults that were made."""
    from klmonitor.attachment import attach
    from klmonitor_trl.demo import tiny

    torch.manual_seed(3)
    trainer = tiny.make_trainer(model, out, steps=STEPS, beta=0.04, per_device_train_batch_size=8)
    handle = None
    if faults is not None:
        handle = attach(trainer, sinks=["tensorboard"])
        faults.arm(*targets)
    trainer.train()
    if handle is not None:
        handle.describe()
        handle.detach()
        faults.disarm()
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    return weights, trainer.state.global_step


def chosen(calls, seed):
    """Some faults of those that a run can make."""
    ours = [site for site in SITES if site.startswith("klmonitor.")]  # others are the trainer's too
    every = [(site, n) for site in ours for n in range(1, calls[site] + 1)]
    rng = random.Random(seed)
    return [(*target, rng.choice(ERRORS)) for target in rng.sample(every, AT_ONCE)]


def same(mine, theirs):
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from klmonitor_trl.demo import tiny

    return tiny.save_tiny_model(tmp_path_factory.mktemp("model"))


def test_one_process(model, tmp_path):
    plain, _ = train(model, tmp_path / "plain")
    forced = 0
    with pytest.MonkeyPatch.context() as patch:
        faults = Faults(patch)
        watched, _ = train(model, tmp_path / "watched", faults)
        assert same(watched, plain)
        calls = faults.calls.copy()
        for run in range(RUNS):
            targets = chosen(calls, run)
            weights, steps = train(model, tmp_path / f"run-{run}", faults, targets)
            assert steps == STEPS, targets
            assert same(weights, plain), targets
            forced += faults.forced
    assert forced >= RUNS


def on_ranks(rank, world, model, out, runs):
    """Of each run on two ranks: whether the weights are the plain ones. Rank 1 has the faults."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
    }
    plain, _ = train(model, f"{out}/plain")
    with pytest.MonkeyPatch.context() as patch:
        faults = Faults(patch)
        train(model, f"{out}/watched", faults)
        calls, found = faults.calls.copy(), []
        for run in range(runs):
            targets = chosen(calls, 1000 + run) if rank == 1 else ()
            weights, steps = train(model, f"{out}/run-{run}", faults, targets)
            found.append((same(weights, plain), steps, faults.forced, targets))
    return found


@pytest.mark.skipif(not RUNS_ON_RANKS, reason="make test-faults runs it: minutes")
def test_two_ranks(model, tmp_path):
    for rank, found in enumerate(
        run_ranks(2, on_ranks, str(model), str(tmp_path), RUNS_ON_RANKS, timeout=1500)
    ):
        assert [(equal, steps) for equal, steps, _, _ in found] == [(True, STEPS)] * len(found), (
            rank
        )
        assert rank == 0 or sum(forced for _, _, forced, _ in found) >= RUNS_ON_RANKS
