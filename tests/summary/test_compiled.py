"""What Numba compiles finds what Python finds, and Python does the work where Numba cannot."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import subprocess
import sys
import types

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from klmonitor import Monitor
from klmonitor.compiled import Compiled, _stored_name, run
from klmonitor.numbers.assemble import numbers, pair_report, pair_totals
from klmonitor.numbers.buckets import N_DRAWN
from klmonitor.numbers.metrics import COMPUTED, METRICS
from klmonitor.numbers.statistics import AT, N_RUNNING
from klmonitor.pairs import default_pairs
from klmonitor.rules.flat import standing
from klmonitor.rules.growth import risen
from klmonitor.rules.trend import expected
from klmonitor.summary.extremes import Place
from klmonitor.summary.passes import accumulate
from klmonitor.summary.state import Summary, _clear
from tests.helpers.tritoncases import CASES, CONFIG

needs_numba = pytest.mark.skipif(
    importlib.util.find_spec("numba") is None, reason="numba is not installed"
)


def state_of(name):
    batch, state = CASES[name](), Summary.empty(CONFIG)
    rows = torch.arange(batch.n_sequences) % 2
    accumulate(state, batch, default_pairs(batch.log_probs), place=Place(), groups=rows)
    return state


@needs_numba
@pytest.mark.parametrize("name", CASES)
def test_the_numbers_of_a_step_are_those_that_python_finds(name, monkeypatch):
    state = state_of(name)
    for pair, totals in pair_totals(state).items():
        running = np.arange(1.0, N_RUNNING + 1), np.arange(1.0, N_RUNNING + 1)
        found = pair_report(pair, totals, running[0], 0.9)
        assert numbers._call is not numbers._plain
        with monkeypatch.context() as patch:
            patch.setattr(numbers, "_call", numbers._plain)
            plain = pair_report(pair, totals, running[1], 0.9)
        np.testing.assert_array_equal(*running)
        assert list(found.histogram) == list(plain.histogram)
        for metric, value in plain.values.items():
            rounding = 1e-6 if metric.endswith("/j") else 1e-9  # what is left of a difference
            close = pytest.approx(value, rel=rounding, abs=1e-300, nan_ok=True)
            assert found[metric] == close, metric


def test_every_metric_that_follows_from_the_sums_is_written():
    assert len(AT) == len(COMPUTED) == len({metric.field for metric in METRICS if metric.computed})
    out, drawn = np.full(len(COMPUTED), 12345.678), np.full(N_DRAWN, 12345.678)
    arguments = numbers._example()
    numbers(*arguments[:-2], out, drawn)
    assert not (out == 12345.678).any()
    assert not drawn.any()


series = st.lists(st.floats(-30, 30), min_size=1, max_size=40).map(np.array)


@needs_numba
@settings(deadline=None, derandomize=True)
@given(series, series, st.floats(-5, 5), st.floats(0, 5), st.floats(0, 5))
def test_the_rules_baselines_are_those_that_python_finds(values, errors, value, se, slack):
    same = {"rel": 1e-12, "abs": 1e-12, "nan_ok": True}
    for one, arguments in (
        (standing, (values, np.abs(errors), value, se, slack)),
        (expected, (values, 3, np.abs(values), np.abs(errors))),
        (risen, (values, errors)),
    ):
        assert one(*arguments) == pytest.approx(one._plain(*arguments), **same)


@needs_numba
def test_a_cleared_state_is_an_empty_one():
    for name in ("nan, inf and huge", "off-policy"):
        state = state_of(name)
        copy = state.clone()
        state.clear()
        _clear._plain(*copy.arrays.values())
        for one in (state, copy):
            for part in ("flat", "maxima", "tokens", "sequences"):
                assert torch.equal(getattr(one, part), getattr(Summary.empty(CONFIG), part))


@needs_numba
@settings(deadline=None, derandomize=True)
@given(st.floats(-20, 20) | st.floats(-1e-3, 1e-3))
def test_the_kernel_s_k3_is_exact_to_rounding(d):
    from klmonitor.summary.numba_kernel import exp_of, k3_of

    with mpmath.workdps(700):
        exact = mpmath.expm1(mpmath.mpf(d)) - mpmath.mpf(d)
        assert abs(mpmath.mpf(k3_of(d)) - exact) <= 4e-15 * exact + 1e-320
        weight = mpmath.exp(mpmath.mpf(d))
        assert abs(mpmath.mpf(exp_of(d)) - weight) <= 4e-16 * weight


@needs_numba
def test_the_kernel_s_weights_reach_the_clamp_and_nothing():
    from klmonitor.summary.numba_kernel import exp_of

    assert exp_of(350.0) == pytest.approx(math.exp(350), rel=1e-15)
    assert exp_of(-690.0) == pytest.approx(math.exp(-690), rel=1e-14)
    assert 0 <= exp_of(-5000.0) < 1e-300


# --- without it ------------------------------------------------------------------------------
def test_what_cannot_be_compiled_is_run_with_one_warning(caplog):
    pytest.importorskip("numba")

    def odd(x):
        return {"a": x, 1: [object()]}["a"] + 1

    one = Compiled(odd, (), lambda: (1.0,))
    Compiled._all.remove(one)
    with caplog.at_level(logging.WARNING):
        assert [one(1.0), one(2.0)] == [2.0, 3.0]
    assert [record.message.count("cannot compile odd") for record in caplog.records] == [1]


def test_without_numba_the_numbers_are_the_same_in_silence(monkeypatch, caplog, recwarn):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.setattr(Compiled, "_python", False)
    one = Compiled(lambda x: x / 0.0, (), lambda: (np.ones(1),))
    Compiled._all.remove(one)
    assert one(np.ones(1)) == math.inf
    assert not caplog.records
    assert not recwarn.list


def test_a_numba_that_cannot_be_imported_is_reported_once(monkeypatch, caplog):
    """As one that refuses the numpy beside it."""
    monkeypatch.setitem(sys.modules, "numba", types.ModuleType("numba"))
    monkeypatch.setattr(Compiled, "_python", False)
    several = [Compiled(lambda x: x + 1, (), lambda: (1.0,)) for _ in range(3)]
    for one in several:
        Compiled._all.remove(one)
    with caplog.at_level(logging.WARNING):
        assert [one(1.0) for one in several] == [2.0] * 3
    assert [r.message.count("Numba cannot be imported here") for r in caplog.records] == [1]


def test_a_full_disk_costs_what_would_be_kept_alone():
    calls = []

    def kept(x):
        calls.append(x)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        return x + 1

    assert run(kept, 1.0) == 2.0
    assert calls == [1.0, 1.0]


def test_nothing_is_compiled_for_a_monitor_that_is_switched_off(monkeypatch):
    monkeypatch.setenv("KLMONITOR_DISABLE", "1")
    monkeypatch.setattr(Compiled, "prepare", lambda: pytest.fail("it was"))
    assert Monitor().step(0) is None


ALONE = """
import sys
sys.modules["numba"] = None
import torch
from klmonitor import Monitor

q = -torch.rand(8, 50, generator=torch.Generator().manual_seed(0))
monitor = Monitor(strict=True)
for step in range(40):
    p = q + 0.1 * torch.randn(8, 50, generator=torch.Generator().manual_seed(step))
    monitor.observe(policy=q, ref=p)
    report = monitor.step(step)
print(repr(report.pairs["policy_ref"]["k3/mean"]))
print(repr(report.pairs["policy_ref"]["spike/z"]))
"""


@needs_numba
def test_a_run_without_numba_has_the_same_report():
    """In a process of its own: what is compiled once stays so."""
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    found = []
    for code in (ALONE, ALONE.replace('sys.modules["numba"] = None', "")):
        done = subprocess.run(
            [sys.executable, "-c", code], env=paths, capture_output=True, text=True, check=True
        )
        assert "klmonitor:" not in done.stderr
        found.append([float(line) for line in done.stdout.split()])
    assert found[0] == pytest.approx(found[1], rel=1e-9)
    assert all(math.isfinite(value) for value in found[0])


# --- on disk ---------------------------------------------------------------------------------
LEVEL = 2.0


def uses_a_constant(x):
    return x * LEVEL


def calls(x):
    return uses_a_constant(x)


def test_what_is_kept_on_disk_is_found_by_what_it_was_made_of(monkeypatch):
    before = _stored_name(calls, (uses_a_constant,))
    assert before == _stored_name(calls, (uses_a_constant,))
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "LEVEL", 3.0)
        assert _stored_name(calls, (uses_a_constant,)) != before
    assert _stored_name(calls, ()) != before
    assert _stored_name(uses_a_constant, (calls,)) != before
