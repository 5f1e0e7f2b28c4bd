"""Audits: sums against plain loops, the schedule against its share, memory against its bound."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr

from klmonitor import Monitor, Penalty
from klmonitor.hooks import audit as module
from klmonitor.hooks.audit import CHUNK, SHARE, Audit, chunks
from klmonitor.numbers.receiptrows import RowSums, of_audit
from klmonitor.summary.audited import audit_sums, audited
from klmonitor.summary.fields import AUDIT_SUMS, PULLS


def logits(positions, vocabulary, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    q = 2 * torch.randn(positions, vocabulary, generator=generator)
    p = q + 0.5 * torch.randn(positions, vocabulary, generator=generator)
    tokens = torch.multinomial(q.softmax(-1), 1, generator=generator)[:, 0]
    return q.to(dtype), p.to(dtype), tokens


def read(sums, beta=1.0):
    row = np.zeros(len(PULLS))
    row[-len(AUDIT_SUMS) :] = sums.numpy()
    return of_audit(RowSums(row), beta)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_numbers_of_an_audit_are_those_of_whole_vocabularies(temperature):
    q, p, tokens = logits(40, 300)
    sequences = torch.arange(40) // 4
    penalty = Penalty("k3", beta=0.2)
    found = read(audit_sums(audited(q, p, tokens, penalty, temperature), sequences), 0.2)
    log_q, log_p = (log_softmax(x.double().numpy() / temperature, -1) for x in (q, p))
    pi = np.exp(log_q)
    kl = rel_entr(pi, np.exp(log_p)).sum(-1)
    d = (log_p - log_q)[np.arange(40), tokens]
    estimates = {"kl": kl, "k1": -d, "k2": d * d / 2, "k3": np.expm1(d) - d}
    for name, x in estimates.items():
        assert found[f"audit/{name}"] == pytest.approx(
            x.mean(), rel=1e-6, abs=2e-7 * (name != "kl")
        )
        sums = (x - x.mean()).reshape(10, 4).sum(1)
        error = math.sqrt(10 / 9 * (sums**2).sum()) / 40
        assert found[f"audit/{name}_se"] == pytest.approx(error, rel=1e-5)
    assert found["audit/entropy"] == pytest.approx(-(pi * log_q).sum(-1).mean(), rel=1e-6)

    def gradient(c):
        g = pi * c
        return g - pi * g.sum(-1, keepdims=True)

    g, true = gradient(-np.expm1(log_p - log_q)), gradient(log_q - log_p)
    along = (g * true).sum() / (true**2).sum()
    assert found["audit/effective_beta"] == pytest.approx(0.2 * along, rel=1e-5)
    length, size = math.sqrt((g**2).sum()), math.sqrt((true**2).sum())
    assert found["audit/length"] == pytest.approx(length / size, rel=1e-5)
    assert found["audit/cosine"] == pytest.approx((g * true).sum() / length / size, rel=1e-5)


def test_sums_of_ranks_add_up():
    q, p, tokens = logits(40, 50)
    values, sequences = audited(q, p, tokens, Penalty(), 1.0), torch.arange(40) // 4
    whole = audit_sums(values, sequences)
    parts = [audit_sums(values[:, some], sequences[some]) for some in (slice(0, 16), slice(16, 40))]
    torch.testing.assert_close(parts[0] + parts[1], whole)


def test_a_term_of_sequences_has_no_gradient_there_and_nan_is_left_out():
    q, p, tokens = logits(20, 50)
    q[3, 7] = math.nan
    for penalty in (None, Penalty("k1", "reward", returns="sequence")):
        sums = audit_sums(audited(q, p, tokens, penalty, 1.0), torch.arange(20))
        found = read(sums, math.nan)
        assert found["audit/positions"] == 19
        assert found["audit/kl"] > 0
        assert "audit/effective_beta" not in found


@given(st.lists(st.integers(0, 30), max_size=80), st.integers(1, 20))
def test_chunks_are_small_and_leave_nothing_out(rows, most):
    places = torch.tensor([[row, i] for i, row in enumerate(sorted(rows))]).reshape(-1, 2)
    found = list(chunks(places, most))
    assert torch.equal(torch.cat([places[:0], *found]), places)
    for some in found:
        assert len(some) <= CHUNK
        assert len(some[:, 0].unique()) <= most


class Clock:
    """Seconds that a test decides."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


def run(monkeypatch, *, steps, every, cost, step_seconds, main=True, agree=None):
    """The steps at which an audit was made."""
    clock, monitor = Clock(), SimpleNamespace(penalties={}, offer=0.0, agreed=-math.inf)
    monkeypatch.setattr(module, "time", clock)
    monitor.add_audit = lambda pair, sums: None

    def source(batch, rows, columns):
        clock.now += cost / 4
        return torch.zeros(len(rows), 5), torch.zeros(len(rows), 5)

    audit = Audit(monitor, "policy_ref", source, every=every, positions=64, rows=99, main=main)
    ids, seen = torch.zeros(8, 20, dtype=torch.long), []
    for step in range(1, steps + 1):
        clock.now += step_seconds
        if audit.due(step):
            audit.look(None, torch.ones(8, 20), ids, step)
            seen.append(step)
        audit.before_step()
        monitor.agreed = monitor.offer if agree is None else agree(step)
        audit.after_step()
    return seen, audit


def test_a_cheap_audit_comes_as_often_as_it_was_asked_for(monkeypatch):
    seen, audit = run(monkeypatch, steps=200, every=50, cost=0.4, step_seconds=1.0)
    assert seen == [50, 100, 150, 200]
    assert audit.share == pytest.approx(0.008)
    assert "4 so far of 400 ms" in audit.describe()


@pytest.mark.parametrize("cost", [1.0, 5.0, 33.0])
def test_a_dear_one_takes_a_hundredth_of_the_time(monkeypatch, cost):
    seen, audit = run(monkeypatch, steps=12_000, every=50, cost=cost, step_seconds=1.0)
    gaps = np.diff(seen)
    assert (gaps == math.ceil(cost / SHARE)).all()
    assert len(gaps)
    assert audit.share <= SHARE * (1 + 1e-9)


def test_a_rank_does_what_the_main_one_sends(monkeypatch):
    seen, _ = run(
        monkeypatch,
        steps=130,
        every=3,
        cost=9,
        step_seconds=1,
        main=False,
        agree=lambda step: 40.0 * (step // 40 + 1),
    )
    assert seen == [40, 80, 120]


def test_what_is_offered_travels_with_the_step():
    monitor = Monitor()
    lp = torch.full((2, 4), -1.0)
    assert monitor.agreed == -math.inf
    monitor.offer = 17.0
    monitor.observe(policy=lp, ref=lp - 0.1)
    monitor.step(1)
    assert monitor.agreed == 17.0


def test_an_audit_stays_in_its_step():
    monitor = Monitor(penalty=Penalty(beta=0.1))
    lp = -torch.linspace(0.5, 1.5, 8).view(2, 4)
    values = audited(*logits(8, 20), Penalty(), 1.0)
    for step in (1, 2):
        monitor.observe(policy=lp, ref=lp - 0.1)
        if step == 1:
            monitor.add_audit("policy_ref", audit_sums(values, torch.arange(8)))
        pair = monitor.step(step).pairs["policy_ref"]
        assert pair["audit/positions"] == (8 if step == 1 else pytest.approx(math.nan, nan_ok=True))
        text = pair.explain(step)
        assert ("exact KL at 8 positions" in text) == (step == 1)
        assert ("exactly, in the logits of 8 positions" in text) == (step == 1)


def test_sixteen_positions_of_152_thousand_tokens_need_64_megabytes():
    """Beyond torch itself: the peak of a fresh process, its logits among it."""
    code = """
        import resource, torch
        from klmonitor import Penalty
        from klmonitor.summary.audited import audited
        torch.set_num_threads(1)
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        small = torch.randn(16, 5000)
        audited(small, small + 1, torch.zeros(16, dtype=torch.long), Penalty(), 1.0)
        before = peak()
        q = torch.randn(16, 152_064)
        p = torch.randn(16, 152_064)
        audited(q, p, torch.zeros(16, dtype=torch.long), Penalty("k3", clamp=10.0), 1.0)
        print(peak() - before)
    """
    made = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert float(made.stdout) <= 64
