"""Several ranks report what one process reports on the union of their tokens."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.distributed as dist

from klmonitor import Monitor
from klmonitor.summary.reduce import COLLECTIVES_PER_STEP
from tests.helpers.ranks import run_ranks

ROWS, COLUMNS = 24, 30
COLLECTIVES = ("all_reduce", "all_gather", "broadcast", "reduce", "gather", "all_gather_object")


def union(step):
    """All tokens of a step; the last rows are without the reference."""
    generator = np.random.default_rng(step)
    q = -generator.exponential(1.5, (ROWS, COLUMNS))
    p = q + 0.3 * generator.standard_t(3, (ROWS, COLUMNS))
    old = q + 0.05 * generator.normal(size=(ROWS, COLUMNS))
    mask = generator.random((ROWS, COLUMNS)) < 0.85
    return {
        "policy": torch.tensor(q),
        "ref": torch.tensor(p),
        "old": torch.tensor(old),
        "mask": torch.tensor(mask),
        "prompt_ids": torch.arange(ROWS) // 3,
    }


def shares(world):
    """Rows of each rank: unequal, one rank empty (if there are three), the last without ref."""
    edges = sorted({0, ROWS, *(int(ROWS * (i / world) ** 1.7) for i in range(1, world))})
    parts = [slice(a, b) for a, b in pairwise(edges)]
    parts += [slice(0, 0)] * (world - len(parts))
    if world >= 3:
        parts[1] = slice(parts[1].start, parts[1].start)
    return parts


def observe_share(monitor, step, rows, *, with_ref, micro_batches):
    data = {name: value[rows] for name, value in union(step).items()}
    if not with_ref:
        data.pop("ref")
    for chunk in range(micro_batches):
        part = {name: value[chunk::micro_batches] for name, value in data.items()}
        if len(part["policy"]):
            monitor.observe(**part)


def numbers(report):
    return {name: dict(pair.values) for name, pair in report.pairs.items()}, [
        (t.pair, t.tail, t.log_ratio, t.log_q) for t in report.extremes
    ]


def distributed_run(rank, world, steps):
    calls = []
    for name in COLLECTIVES:
        original = getattr(dist, name)
        setattr(
            dist, name, lambda *a, _n=name, _o=original, **k: (calls.append(_n), _o(*a, **k))[1]
        )
    monitor = Monitor(strict=True)
    rows = shares(world)[rank]
    reports, counts = [], []
    for step in range(steps):
        observe_share(
            monitor, step, rows, with_ref=rank < world - 1 or world == 1, micro_batches=1 + rank % 3
        )
        before = len(calls)
        reports.append(numbers(monitor.step(step)))
        counts.append(len(calls) - before)
    return reports, counts


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_ranks_report_the_union(world):
    steps = 3
    results = run_ranks(world, distributed_run, steps)
    single = Monitor(strict=True)
    for step in range(steps):
        for rank, rows in enumerate(shares(world)):
            observe_share(
                single, step, rows, with_ref=rank < world - 1 or world == 1, micro_batches=1
            )
        expected, tokens = numbers(single.step(step))
        for reports, _ in results:
            got, got_tokens = reports[step]
            assert got.keys() == expected.keys() == {"policy_ref", "old_policy"}
            for pair, values in expected.items():
                for name, value in values.items():
                    scale = max(abs(value), values["k3/mean"], abs(values["k1/mean"]))
                    if math.isnan(value):
                        assert math.isnan(got[pair][name]), (pair, name)
                    else:
                        assert got[pair][name] == pytest.approx(value, abs=1e-12 * scale), name
            assert got_tokens == tokens
    for _, counts in results:
        assert counts == [COLLECTIVES_PER_STEP + 1] + [COLLECTIVES_PER_STEP] * (steps - 1)


def disabled_run(rank, world):
    monitor = Monitor()
    monitor.observe(**{k: v[:4] for k, v in union(0).items()})
    first = monitor.step(0)
    if rank == 1:
        for _ in range(6):  # gives up
            monitor.observe(policy=torch.zeros(2, 3), ref=torch.zeros(3, 2))
    monitor.observe(**{k: v[:4] for k, v in union(1).items()})
    second = monitor.step(1)
    return first.pairs["policy_ref"].tokens, second.pairs["policy_ref"].tokens, second.run_values


def test_a_disabled_rank_does_not_hang_the_others():
    for first, second, run_values in run_ranks(2, disabled_run):
        assert first == 2 * union(0)["mask"][:4].sum().item()
        assert second == union(1)["mask"][:4].sum().item()
        assert run_values["klmonitor/active"] == 0
        assert run_values["klmonitor/errors"] == 5


def mismatched_run(rank, world):
    monitor = Monitor(groups=["a"] if rank else ["b"], strict=True)
    monitor.observe(**union(0))
    try:
        monitor.step(0)
    except ValueError as error:
        return str(error)
    return ""


def test_ranks_with_other_settings_are_told_apart_at_the_first_step():
    messages = run_ranks(2, mismatched_run)
    assert all("ranks [1] are configured differently from rank 0" in text for text in messages)


def muted_run(rank, world, run_dir):
    """Whether each step's alert is muted, on this rank; the main one alone has the file."""
    rules = {"limit": {"policy_ref": 1e-3}}
    monitor = Monitor(run_dir if rank == 0 else None, rules=rules)
    found = []
    for step, scale in enumerate((1e-6, 1.0)):
        q = -1 - torch.rand(4, 8)
        monitor.observe(policy=q, ref=q + scale)
        found += [(alert.kind, alert.muted) for alert in monitor.step(step).alerts]
    monitor.close()
    return found


def test_ranks_mute_the_same_alerts_though_one_alone_has_the_file(tmp_path):
    (tmp_path / "mutes.jsonl").write_text('{"kind": "limit"}\n')
    first, second = run_ranks(2, muted_run, str(tmp_path))
    assert first == second
    assert ("limit", True) in first
