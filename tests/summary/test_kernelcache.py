"""The CPU's kernel: compiled beside training, once a cache, and exact to rounding."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("numba")

from klmonitor.pairs import default_pairs
from klmonitor.summary import kernelcache, numba_pass, passes
from klmonitor.summary.extremes import Place
from klmonitor.summary.fields import SummaryConfig
from klmonitor.summary.kernelcache import LOCK, MARK, Loader
from klmonitor.summary.state import Summary
from tests.helpers.batches import CASES, made_up
from tests.helpers.steps import COMPILE_SECONDS


@pytest.fixture(scope="module", autouse=True)
def kernel():
    """The kernel, loaded."""
    loader = passes.TOKENS.loader
    assert loader.wait(COMPILE_SECONDS), loader.error
    from klmonitor.summary import numba_kernel

    return numba_kernel


# --- arithmetic --------------------------------------------------------------------------------
@given(st.floats(-20, 20) | st.floats(-1e-3, 1e-3))
def test_the_kernel_s_k3_is_exact_to_rounding(d):
    from klmonitor.summary.numba_kernel import exp_of, k3_of

    with mpmath.workdps(700):
        exact = mpmath.expm1(mpmath.mpf(d)) - mpmath.mpf(d)
        assert abs(mpmath.mpf(k3_of(d)) - exact) <= 4e-15 * exact + 1e-320
        weight = mpmath.exp(mpmath.mpf(d))
        assert abs(mpmath.mpf(exp_of(d)) - weight) <= 4e-16 * weight


def test_the_kernel_s_weights_reach_the_clamp_and_nothing(kernel):
    assert kernel.exp_of(350.0) == pytest.approx(math.exp(350), rel=1e-15)
    assert kernel.exp_of(-690.0) == pytest.approx(math.exp(-690), rel=1e-14)
    assert 0 <= kernel.exp_of(-5000.0) < 1e-300


# --- threads -------------------------------------------------------------------------------------
@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("name", ["several tiles", "packed", "off-policy, odd", "ties"])
def test_threads_find_what_one_does(name, threads, monkeypatch):
    """The place of every extreme token too: each knows how many sequences came before its own."""
    cases = {
        **CASES,
        "several tiles": lambda: made_up(3, 40, 3000, policies=3),
        "packed": lambda: packed(made_up(4, 1, 9000, policies=3)),
    }
    batch = cases[name]()
    pairs, config = default_pairs(batch.log_probs), SummaryConfig(("a", "b"))
    rows = torch.arange(batch.n_sequences) % 3
    states = []
    for number in (1, threads):
        monkeypatch.setattr(torch, "get_num_threads", lambda number=number: number)
        monkeypatch.setattr(numba_pass, "LEAST_A_THREAD", 1)
        state = Summary.empty(config)
        numba_pass.add(state, batch, pairs, Place(1, 2), rows)
        numba_pass.add(state, batch, pairs, Place(1, 3), 0)
        states.append(state)
    one, several = states
    for exact in ("histogram", "policies", "maxima", "tokens"):
        assert torch.equal(getattr(one, exact), getattr(several, exact)), exact
    for sums in ("sums", "prompts", "sequences"):
        torch.testing.assert_close(getattr(one, sums), getattr(several, sums), rtol=1e-12, atol=0)


def packed(batch):
    """One row as 37 sequences of different lengths."""
    from dataclasses import replace

    ends = torch.sort(torch.randperm(8998, generator=torch.Generator().manual_seed(0))[:36] + 1)
    segments = torch.bucketize(torch.arange(9000), ends.values, right=True)
    return replace(
        batch, segments=segments, n_sequences=37, prompt_ids=torch.arange(37) // 4, token_ids=None
    )


# --- the cache -----------------------------------------------------------------------------------
FIRST = """
import json, sys, time
import torch
import klmonitor.monitor
from klmonitor import Monitor
from klmonitor.summary import passes, signatures

q = -torch.rand(8, 64, generator=torch.Generator().manual_seed(0))
started = time.process_time()
monitor = Monitor()
monitor.observe(policy=q, ref=q - 0.1)
report = monitor.step(0)
spent = time.process_time() - started
kernel = passes.TOKENS
print(json.dumps({
    "k3": report.pairs["policy_ref"].k3.mean,
    "cpu": spent,
    "children": kernel.loader._tried,
    "numba": "numba" in sys.modules,
    "ready": kernel.loader.ready(),
}))
sys.stdout.flush()
if len(sys.argv) > 1:
    loaded = kernel.loader.wait(300)
    from klmonitor.summary.numba_kernel import add_pair
    from klmonitor.summary.numba_signatures import add_sequences
    from klmonitor.summary.numba_pulls import add_pulls
    from klmonitor.summary.numba_unclipped import add_unclipped
    kernels = (add_pair, add_sequences, add_pulls, add_unclipped)
    misses = sum(sum(f.stats.cache_misses.values()) for f in kernels)
    monitor.observe(policy=q, ref=q - 0.1)
    used = bool(kernel.tried) and bool(signatures.KERNEL.tried)
    print(json.dumps({"loaded": loaded, "misses": misses, "used": used, "wrong": kernel.wrong}))
"""


def run(cache, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", FIRST, *arguments],
        env={
            **os.environ,
            "KLMONITOR_CACHE_DIR": str(cache),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        },
        stdout=subprocess.PIPE,
        text=True,
    )


def said(process):
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    return [json.loads(line) for line in out.splitlines()]


def test_on_an_empty_cache_one_child_compiles_while_all_go_on(tmp_path):
    """Four processes at once: none compiles, none waits, one child has the lock."""
    processes = [run(tmp_path, "wait") for _ in range(4)]
    found = [said(process) for process in processes]
    for first, later in found:
        assert first["k3"] == pytest.approx(math.expm1(-0.1) + 0.1, rel=1e-5)
        assert later == {"loaded": True, "misses": 0, "used": True, "wrong": None}
    assert not any(first["numba"] or first["ready"] for first, _ in found)
    assert sum(first["children"] for first, _ in found) == 1
    (place,) = tmp_path.iterdir()
    assert {MARK, LOCK} <= {path.name for path in place.iterdir()}


def test_a_child_that_was_killed_leaves_a_lock_that_the_next_one_gets(tmp_path, monkeypatch):
    monkeypatch.setenv("KLMONITOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(kernelcache, "KERNELS", {"klmonitor.summary.no_such_module": "add"})
    place = kernelcache.directory()
    with (place / LOCK).open("ab") as lock:
        kernelcache.fcntl.flock(lock, kernelcache.fcntl.LOCK_EX)
        assert kernelcache.start(place) is None, "somebody else compiles"
    child = kernelcache.start(place)
    assert child is not None
    os.kill(child, 9)
    os.waitpid(child, 0)
    child = kernelcache.start(place)
    assert child is not None
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert not (place / MARK).exists()


def test_a_cache_that_is_whole_is_compiled_into_by_nobody(tmp_path, monkeypatch):
    monkeypatch.setenv("KLMONITOR_CACHE_DIR", str(tmp_path))
    place = kernelcache.directory()
    (place / MARK).touch()
    assert kernelcache.start(place) is None


def test_where_no_cache_can_be_written_the_temporary_directory_is_used(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("KLMONITOR_CACHE_DIR", str(blocked))
    monkeypatch.setattr(kernelcache.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    assert kernelcache.directory().is_relative_to(tmp_path / "tmp")
    monkeypatch.setattr(kernelcache.tempfile, "gettempdir", lambda: str(blocked))
    with pytest.raises(OSError, match="set KLMONITOR_CACHE_DIR"):
        kernelcache.directory()


def test_other_sources_are_another_cache(monkeypatch, tmp_path):
    before = kernelcache.digest()
    kernelcache.digest.cache_clear()
    monkeypatch.setattr(kernelcache, "SOURCES", kernelcache.SOURCES[:-1])
    assert kernelcache.digest() != before
    kernelcache.digest.cache_clear()


def told_once(kernel, caplog):
    """Why a kernel is given up, which one warning has said."""
    batch = made_up(0, 3, 30)
    for _ in range(3):
        state = Summary.empty(SummaryConfig())
        assert not kernel.add(state, batch, default_pairs(batch.log_probs), Place(), 0)
    assert [r.message.count("the plain pass does its work") for r in caplog.records] == [1]
    return kernel.wrong


def test_what_cannot_be_loaded_is_told_once_and_the_plain_pass_goes_on(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("KLMONITOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(kernelcache, "KERNELS", {"klmonitor.summary.no_such_module": "add"})
    (kernelcache.directory() / MARK).touch()
    loader = Loader()
    kernel = passes.Kernel("Numba", "klmonitor.summary.numba_pass", loader)
    assert not loader.wait(60)
    assert "no_such_module" in told_once(kernel, caplog)


def test_a_child_that_compiles_nothing_is_told_once_and_the_plain_pass_goes_on(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("KLMONITOR_CACHE_DIR", str(tmp_path))
    loader = Loader()
    kernel = passes.Kernel("Numba", "klmonitor.summary.numba_pass", loader)
    monkeypatch.setattr(kernelcache.sys, "executable", shutil.which("false"))
    assert not loader.wait(60)
    assert "has ended without success" in told_once(kernel, caplog)


def test_nothing_is_started_where_monitoring_is_off(monkeypatch, tmp_path):
    monkeypatch.setenv("KLMONITOR_DISABLE", "1")
    monkeypatch.setenv("KLMONITOR_CACHE_DIR", str(tmp_path))
    from klmonitor import Monitor

    monitor = Monitor()
    monitor.observe(policy=torch.zeros(2, 3), ref=torch.zeros(2, 3))
    assert list(Path(tmp_path).iterdir()) == []


def test_another_process_s_child_is_not_said_to_have_failed(tmp_path, monkeypatch):
    """A forked process cannot ask for it: it waits for the mark."""
    monkeypatch.setenv("KLMONITOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(kernelcache, "LOOK_SECONDS", 0.0)
    loader = Loader()
    loader._child, loader._tried = os.getppid(), True
    assert not loader.ready()
    assert not loader.ready()
    assert loader.error is None
