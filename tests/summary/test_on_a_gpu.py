"""Tokens on a GPU: what the CPU finds of the same, without waiting for the device."""

from __future__ import annotations

import math
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from klmonitor import Monitor, Penalty

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
LAYOUTS = ("rows", "packed", "list")


def observed(seed, layout, rows=16, columns=300):
    """One micro-batch of an engine's, a trainer's, an updated and a reference policy's tokens."""
    rng = np.random.default_rng(seed)
    rollout = -rng.exponential(0.8, (rows, columns)).astype(np.float32)
    given = {"rollout": rollout}
    for name, scale in (("old", 0.02), ("policy", 0.1), ("ref", 0.3)):
        moved = given["rollout"] + scale * rng.standard_t(4, rollout.shape).astype(np.float32)
        given[name] = np.minimum(moved, np.float32(-1e-4))
    given["ref"][0, 5], given["policy"][1, 7] = np.nan, np.float32(-60)
    lengths = rng.integers(columns // 3, columns + 1, rows)
    given["mask"] = (np.arange(columns) < lengths[:, None]) & (rng.random(rollout.shape) < 0.9)
    given["token_ids"] = rng.integers(0, 50_000, rollout.shape)
    given["entropy"] = rng.exponential(0.8, rollout.shape).astype(np.float32)
    given["advantages"] = rng.normal(0, 1, (rows, 1)).repeat(columns, 1).astype(np.float32)
    given = {name: torch.from_numpy(values) for name, values in given.items()}
    if layout != "rows":
        given = {name: [x[i, :n] for i, n in enumerate(lengths)] for name, x in given.items()}
        policies = ("rollout", "old", "policy", "ref")
        kept = policies if layout == "list" else ()
        given = {name: x if name in kept else torch.cat(x) for name, x in given.items()}
    if layout == "packed":
        given["cu_seqlens"] = torch.tensor([0, *np.cumsum(lengths)])
    return given | {"prompt_ids": torch.arange(rows) // 4}


def to_gpu(given):
    return {
        name: [one.cuda() for one in x] if isinstance(x, list) else x.cuda()
        for name, x in given.items()
    }


def watched(layout, moved, steps=2):
    """The reports of some steps of two micro-batches each."""
    term = Penalty("k3", placed="loss", ratio="differentiated", beta=0.1)
    monitor = Monitor(groups=("math", "code"), penalty=term, clip_range=(0.8, 1.28), strict=True)
    reports = []
    for step in range(steps):
        for number in range(2):
            given = moved(observed(10 * step + number, layout))
            monitor.observe(**given, group=["math", "code"] * 8)
        reports.append(monitor.step(step))
    assert monitor.errors == 0
    return reports


def same_number(a, b):
    return a == b or (math.isnan(a) and math.isnan(b))


@contextmanager
def deterministic():
    """As users ask torch for it; what has no such form raises."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def no_waiting():
    """Fails where the host waits for the device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says that it does not see every wait
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_report_is_that_of_the_cpu(layout):
    on_gpu, on_cpu = watched(layout, to_gpu), watched(layout, dict)
    for found, expected in zip(on_gpu, on_cpu, strict=True):
        assert found.pairs.keys() == expected.pairs.keys()
        for pair, theirs in expected.pairs.items():
            mine = found.pairs[pair]
            assert mine.values.keys() == theirs.values.keys()
            other = {
                name: (mine.values[name], value)
                for name, value in theirs.values.items()
                if not same_number(mine.values[name], value)
            }
            assert not other
            assert list(mine.histogram) == list(theirs.histogram)
            assert [(x.sequence, x.position, x.token_id) for x in mine.extremes] == [
                (x.sequence, x.position, x.token_id) for x in theirs.extremes
            ]
            assert mine.verdict == theirs.verdict
            assert mine.cause.name == theirs.cause.name
        assert [a.kind for a in found.alerts] == [a.kind for a in expected.alerts]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_fails_where_torch_must_be_deterministic(layout):
    with deterministic():
        first, second = (watched(layout, to_gpu) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        for pair in a.pairs:
            assert dict(a.pairs[pair].values).keys() == dict(b.pairs[pair].values).keys()
            for name, value in a.pairs[pair].values.items():
                assert same_number(value, b.pairs[pair].values[name]), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_waits_for_the_gpu_with_all_that_can_be_given(layout):
    term = Penalty("k3", placed="loss", ratio="differentiated", beta=0.1)
    monitor = Monitor(groups=("math", "code"), penalty=term, clip_range=(0.8, 1.28), strict=True)
    batches = [to_gpu(observed(number, layout)) for number in range(3)]
    prompts = torch.arange(16) // 4
    for given in batches:
        given["prompt_ids"] = prompts
    monitor.observe(**batches[0])  # setup: reads values, builds the kernel
    with no_waiting():
        for given in batches[1:]:
            monitor.observe(**given, group=["math", "code"] * 8)
    assert monitor.errors == 0
    assert monitor.step(0).pairs["policy_ref"].tokens > 0
