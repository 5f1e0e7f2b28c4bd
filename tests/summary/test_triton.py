"""The Triton pass against the plain one: in Triton's interpreter, and on a GPU if there is one."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from klmonitor import Monitor
from klmonitor.pairs import default_pairs, sampler
from klmonitor.summary import chunked
from klmonitor.summary.fields import (
    CLAMP,
    COLUMN,
    CORE_RADIUS,
    MOMENTS,
    N_TOKEN_COLUMNS,
    WEIGHTED,
)
from tests.helpers.tritoncases import CASES, made_up, state_of

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
SCRIPT = Path(__file__).parents[1] / "helpers" / "tritoncases.py"
ROUNDING = 1e-12


def child(job, out, **environment):
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", str(SCRIPT), job, str(out)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Job -> the file that it wrote; both run at once."""
    folder = tmp_path_factory.mktemp("triton")
    files = {"run": folder / "found.pt", "build": folder / "kernel.ptx"}
    jobs = [
        child("run", files["run"], TRITON_INTERPRET="1"),
        child("build", files["build"], TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(folder)),
    ]
    for job in jobs:
        _, errors = job.communicate(timeout=300)
        assert job.returncode == 0, errors
    return files


@pytest.fixture(scope="module")
def interpreted(outputs):
    """Case -> what the kernel found, run by Triton's interpreter."""
    return torch.load(outputs["run"])


def magnitudes(batch, pair):
    """[B, N_TOKEN_COLUMNS]: sums of the absolute terms, what rounding is relative to."""
    q, p, b = (
        batch.log_probs[name].double().numpy()
        for name in (pair.q, pair.p, sampler(batch.log_probs))
    )
    with np.errstate(all="ignore"):
        d = p - q
        counted = np.isfinite(d) & (True if batch.mask is None else batch.mask.numpy())
        d = np.where(counted, d, 0.0)
        weight = np.where(np.isfinite(q - b), np.exp(np.minimum(q - b, CLAMP)), 0.0)
        features = {
            "one": np.ones_like(d),
            "d": np.abs(d),
            "abs": np.abs(d),
            "d2": d * d,
            "k3": np.abs(np.expm1(np.minimum(d, CLAMP))) + np.abs(d),
            "w": weight,
        }
        sums = np.zeros((len(d), N_TOKEN_COLUMNS))
        for part, chosen in (("core", np.abs(d) <= CORE_RADIUS), ("tail", np.abs(d) > CORE_RADIUS)):
            for m in MOMENTS:
                terms = np.where(counted & chosen, features[m.left] * features[m.right], 0.0)
                sums[:, COLUMN[f"{part}/{m.name}"]] = terms.sum(1)
        for m in WEIGHTED:
            terms = np.where(counted, features[m.left] * features[m.right], 0.0)
            sums[:, COLUMN[m.name]] = terms.sum(1)
    return torch.from_numpy(sums)


def assert_same(batch, expected, policies, rows, histograms, state):
    """The plain pass's numbers: counts exactly, sums to rounding, extremes exactly.

    Args:
        batch: whose tokens.
        expected: `Collection` of the plain pass, by row.
        policies: of the other pass.
        rows: one tensor a pair.
        histograms: one tensor a pair.
        state: maxima, tokens and sequences of the state after the other pass.
    """
    assert policies.keys() == expected.policies.keys()
    for name, counts in expected.policies.items():
        assert torch.equal(policies[name], counts), name
    for pair, found, histogram in zip(expected.pairs, rows, histograms, strict=True):
        assert torch.equal(histogram, pair.histogram)
        tolerance = ROUNDING * magnitudes(batch, pair.pair)  # 0 for counts
        same = (found == pair.rows) | ((found - pair.rows).abs() <= tolerance)
        names = [name for name, column in COLUMN.items() if column < N_TOKEN_COLUMNS]
        assert bool(same.all()), [n for n, ok in zip(names, same.all(0), strict=True) if not ok]
    reference = state_of(batch, expected)
    assert torch.equal(state["maxima"], reference.maxima)
    assert torch.equal(state["tokens"], reference.tokens)
    keys, others = state["sequences"][..., 0], reference.sequences[..., 0]
    assert torch.equal(keys == -torch.inf, others == -torch.inf)


def plain(batch):
    return chunked.collect(batch, default_pairs(batch.log_probs), by_row=True)


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_finds_what_the_plain_pass_finds(name, interpreted):
    batch, found = CASES[name](), interpreted[name]
    assert_same(batch, plain(batch), found["policies"], found["rows"], found["histograms"], found)


def test_the_cases_have_what_they_are_for():
    """So that no comparison is of nothing with nothing."""
    counts = {name: torch.zeros(len(COLUMN)) for name in CASES}
    for name, case in CASES.items():
        for pair in plain(case()).pairs:
            counts[name][:N_TOKEN_COLUMNS] += pair.rows.sum(0)
    for column in ("nan", "inf", "clamped", "unweighted", "zero", "tail/n", "core/n"):
        assert max(count[COLUMN[column]] for count in counts.values()) > 3, column
    assert counts["nothing counts"][COLUMN["core/n"]] == 0
    assert counts["off-policy"][COLUMN["w"]] > 100
    ties = state_of(CASES["ties in long rows"](), plain(CASES["ties in long rows"]()))
    assert ties.tokens[0, 1, :, 0].unique().numel() < 5


@needs_triton
def test_the_kernel_builds_for_a_gpu(outputs):
    """Down to machine code, in float64, without spilling or approximating."""
    ptx = outputs["build"].read_text()
    assert "sm_90" in ptx
    assert "atom.global" in ptx
    assert re.search(r"fma\.rn\.f64", ptx)
    assert "approx" not in ptx, "an approximate instruction in a float64 kernel"


# --- on a GPU --------------------------------------------------------------------------------
def to_gpu(batch):
    def moved(tensor):
        return None if tensor is None else tensor.cuda()

    return replace(
        batch,
        log_probs={name: values.cuda() for name, values in batch.log_probs.items()},
        mask=moved(batch.mask),
        token_ids=moved(batch.token_ids),
        prompt_ids=moved(batch.prompt_ids),
    )


@pytest.mark.cuda
@needs_gpu
@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_on_a_gpu_finds_what_the_plain_pass_finds(name):
    from klmonitor.summary import triton_pass

    batch = CASES[name]()
    on_gpu = to_gpu(batch)
    found = [triton_pass.collect(on_gpu, default_pairs(batch.log_probs)) for _ in range(2)]
    rows = [[pair.rows.cpu() for pair in some.pairs] for some in found]
    assert all(torch.equal(a, b) for a, b in zip(*rows, strict=True)), "not deterministic"
    state = state_of(on_gpu, found[0]).to("cpu")
    policies = {policy: counts.cpu() for policy, counts in found[0].policies.items()}
    histograms = [pair.histogram.cpu() for pair in found[0].pairs]
    assert_same(batch, plain(batch), policies, rows[0], histograms, vars(state))


@pytest.mark.cuda
@needs_gpu
@pytest.mark.parametrize("packed", [False, True])
def test_observe_never_waits_for_the_gpu(packed):
    batch = to_gpu(made_up(0, 8, 500, policies=3))
    layout = {"mask": batch.mask, "token_ids": batch.token_ids}
    log_probs = dict(batch.log_probs)
    if packed:
        log_probs = {name: values.flatten() for name, values in log_probs.items()}
        layout = {name: values.flatten() for name, values in layout.items()}
        layout["cu_seqlens"] = 500 * torch.arange(9, device="cuda")
    monitor = Monitor(groups=("math",), strict=True)
    observe = {**log_probs, **layout, "prompt_ids": torch.arange(8) // 2}
    monitor.observe(**observe)  # setup: reads values, builds the kernel
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        for group in ("math", ["math", "other"] * 4, None):
            monitor.observe(**observe, group=group)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert monitor.errors == 0
    assert monitor.step(0).pairs["policy_ref"].tokens == 4 * int(batch.mask.sum())
