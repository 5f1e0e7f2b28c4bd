"""GRPO on a GPU: the same training bit for bit, watched or not, and TRL's own KL."""

import pytest
import torch

from klmonitor.attachment import attach

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.filterwarnings("ignore:.*deterministic.*:UserWarning"),
]
LOGGED = ("loss", "grad_norm", "reward", "kl")


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("bf16", [False, True])
def test_training_is_bit_for_bit_the_same(make_trainer, deterministic, bf16):
    runs = []
    for watched in (False, True):
        torch.manual_seed(5)
        trainer = make_trainer(5, beta=0.04, num_iterations=2, use_cpu=False, bf16=bf16)
        assert trainer.accelerator.device.type == "cuda"
        handle = attach(trainer, audit_every=2) if watched else None
        trainer.train()
        if handle is not None:
            assert handle.monitor.errors == 0
            assert "policy_ref" in "".join(map(str, trainer.state.log_history))
        rows = [[row.get(key) for key in LOGGED] for row in trainer.state.log_history]
        weights = {key: value.clone() for key, value in trainer.model.state_dict().items()}
        random = (torch.get_rng_state(), torch.cuda.get_rng_state())
        runs.append((rows, weights, random))
    (rows, weights, random), (rows_2, weights_2, random_2) = runs
    assert rows == rows_2
    assert any(row[0] for row in rows)
    for key, value in weights.items():
        assert torch.equal(value, weights_2[key]), key
    assert all(map(torch.equal, random, random_2))


def test_k3_is_trls_kl(watch, formulas):
    run = watch(steps=8, beta=0.04, use_cpu=False)
    for step, row in run.rows.items():
        assert run.batches["train", step][0]["policy"].is_cuda
        expected = formulas["k3_mean"](run.log_ratios([step]))
        found = run.reports["train", step].pairs["policy_ref"].k3.mean
        assert found == pytest.approx(expected, rel=0, abs=1e-9)
        assert found == pytest.approx(row["kl"], rel=1e-4, abs=1e-6)
    assert run.rows[8]["kl"] > 1e-3, "the run must have moved, or this compares zeros"
    assert run.handle.monitor.errors == 0
