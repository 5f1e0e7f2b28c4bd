"""Two processes of a real DDP run on gloo: global numbers; nobody waits for a rank that is off."""

from __future__ import annotations

import os

import pytest
import torch

from klmonitor.monitor import Monitor
from tests.helpers.ranks import run_ranks

STEPS = 3
POSITIONS = 20


def ddp_run(rank, world, model_path, out):
    """Three runs: a sound one, one whose capture fails on rank 1, one that is off on rank 1."""
    from klmonitor.attachment import attach
    from klmonitor_trl.demo import tiny

    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
    }

    def run(name, prepare=lambda handle: None, steps=STEPS, **options):
        trainer = tiny.make_trainer(
            model_path, f"{out}/{name}", steps=steps, beta=0.04, per_device_train_batch_size=8
        )
        assert trainer.accelerator.num_processes == world
        handle = attach(trainer, **options)
        batches, reports = [], []
        observe, step = handle.monitor.observe, handle.monitor.step

        def keep_batch(**given):
            batches.append(
                {k: v.numpy().copy() if torch.is_tensor(v) else v for k, v in given.items()}
            )
            return observe(**given)

        def keep_report(*args, **kwargs):
            reports.append(step(*args, **kwargs))
            return reports[-1]

        handle.monitor.observe, handle.monitor.step = keep_batch, keep_report
        prepare(handle)
        trainer.train()
        handle.detach()
        rows = [row for row in trainer.state.log_history if "loss" in row]
        return handle, batches, reports, rows

    handle, batches, reports, _ = run("sound", audit_every=1, audit_positions=POSITIONS)
    numbers = [(report.pairs["policy_ref"].values, report.run_values) for report in reports]
    sound = batches, numbers, handle.describe()

    def break_rank_1(handle):
        if rank == 1:
            handle.monitor.observe = lambda **given: 1 / 0

    handle, _, reports, _ = run("broken", break_rank_1, steps=5)
    gauges = [report.run_values["klmonitor/active"] for report in reports]
    tokens = [report.pairs["policy_ref"].tokens for report in reports]
    broken = gauges, tokens, handle.describe()

    if rank == 1:
        os.environ["KLMONITOR_DISABLE"] = "1"
    handle, _, reports, rows = run("off", steps=2)
    off = handle.describe(), reports, [key for row in rows for key in row if "kl/" in key]
    return sound, broken, off


@pytest.fixture(scope="module")
def results(model_path, tmp_path_factory):
    return run_ranks(2, ddp_run, str(model_path), str(tmp_path_factory.mktemp("ddp")))


def test_every_rank_has_the_numbers_of_the_union(results):
    whole = Monitor(strict=True)
    batches = [sound[0] for sound, _, _ in results]
    assert [len(one) for one in batches] == [STEPS, STEPS]
    local = []
    for step in range(STEPS):
        for one in batches:
            whole.observe(**one[step])
        d = batches[0][step]["ref"].astype(float) - batches[0][step]["policy"]
        local.append(-d[batches[0][step]["mask"] != 0].mean())
        expected = whole.step(step + 1).pairs["policy_ref"].values
        for sound, _, _ in results:
            values, run_values = sound[1][step]
            assert run_values["klmonitor/active"] == 1
            for name, value in expected.items():
                scale = max(1.0, abs(value))
                assert values[name] == pytest.approx(value, abs=1e-9 * scale, nan_ok=True), name
    assert results[0][0][1][2][0]["k1/mean"] != pytest.approx(local[2], abs=1e-6)


def test_a_rank_whose_capture_fails_shows_on_all_and_nobody_hangs(results):
    for _, (gauges, tokens, _), _ in results:
        assert len(gauges) == 5
        assert gauges[0] == 1
        assert gauges[-1] == 0
        assert tokens[-1] > 0
    (_, (_, tokens, whole), _), (_, (_, others, failing), _) = results
    assert tokens == others
    assert "given up" not in whole
    assert "given up: loss" in failing


def test_a_rank_that_is_switched_off_switches_all_off(results):
    for _, _, (text, reports, keys) in results:
        assert "off" in text
        assert reports == []
        assert keys == []


def test_ranks_audit_at_the_same_steps_and_report_the_union(results):
    """The first two are due; the main rank then asks for so few that they cost a hundredth."""
    (one, *_), (other, *_) = results
    for step in range(STEPS):
        mine, others = one[1][step][0], other[1][step][0]
        audited = {name for name in mine if name.startswith("audit/")}
        assert audited == {name for name in others if name.startswith("audit/")}
        assert all(mine[name] == others[name] for name in audited)
        assert mine.get("audit/positions", 0) == (2 * POSITIONS if step < 2 else 0)
    assert one[1][1][0]["audit/kl"] > 0
    told = [text.partition("the next at step ")[2].split()[0] for text in (one[2], other[2])]
    assert told[0] == told[1]
    assert int(told[0]) > 3
