"""A compiled pass is tried before it is used, and given up where it fails."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from klmonitor.pairs import default_pairs
from klmonitor.summary import chunked, passes
from klmonitor.summary.extremes import Place
from klmonitor.summary.fields import CENTRE, COLUMN, SummaryConfig
from klmonitor.summary.state import ORDERED, Summary
from tests.helpers.batches import made_up
from tests.helpers.steps import choose_pass

WHERE = Place(0, 3), 0


@pytest.fixture
def kernel_of(monkeypatch):
    """A kernel whose pass is a function of the test's."""

    def make(add, fits=lambda batch: True):
        monkeypatch.setitem(sys.modules, "made_up_pass", SimpleNamespace(fits=fits, add=add))
        return passes.Kernel("Made-up", "made_up_pass")

    return make


def use(kernel, batch):
    """The state after a kernel was offered a batch; None where it did not take it."""
    state = Summary.empty(SummaryConfig())
    taken = kernel.add(state, batch, default_pairs(batch.log_probs), *WHERE)
    if not taken:
        assert not state.whole().any(), "it has left something"
    return state if taken else None


def test_a_kernel_that_agrees_is_tried_once_and_used(kernel_of):
    batches = []

    def add(state, batch, pairs, *where):
        batches.append(batch)
        chunked.add(state, batch, pairs, *where)

    kernel, batch = kernel_of(add), made_up(0, 3, 30)
    plain = Summary.empty(SummaryConfig())
    chunked.add(plain, batch, default_pairs(batch.log_probs), *WHERE)
    for _ in range(2):
        assert np.array_equal(use(kernel, batch).whole(), plain.whole())
    assert [b is batch for b in batches] == [False, True, True]
    assert kernel.wrong is None


def of_first(state, name):
    """The first pair's part of an array, to write to."""
    return torch.from_numpy(state.arrays[name][0])


BREAK = {
    "histogram": lambda state: of_first(state, "histogram")[CENTRE].add_(1),
    "sums": lambda state: state.sums[0, 0, COLUMN["core/k3"]].mul_(1 + 1e-6),
    "counts": lambda state: state.sums[0, 0, COLUMN["nan"]].add_(1),
    "products": lambda state: state.sums[0, 0, COLUMN["t.k1"]].mul_(1 + 1e-6),
    "maxima": lambda state: state.maxima[0].add_(1),
    "token ids": lambda state: state.tokens[0, 0, 3, 7].add_(1),
    "not a number": lambda state: state.sums[0, 0, COLUMN["core/d"]].fill_(torch.nan),
    "prompts": lambda state: of_first(state, "prompts")[0, :, 1].mul_(1 + 1e-6),
    "policies": lambda state: state.policies[0, 1].add_(1),
}


@pytest.mark.parametrize("what", BREAK)
def test_a_kernel_that_finds_other_numbers_is_given_up_with_one_warning(what, kernel_of, caplog):
    def add(state, batch, pairs, *where):
        chunked.add(state, batch, pairs, *where)
        BREAK[what](state)

    kernel, batch = kernel_of(add), made_up(0, 3, 30)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert use(kernel, batch) is None
    assert kernel.wrong
    assert [r.message.count("the plain pass does its work") for r in caplog.records] == [1]
    assert "the Made-up kernel failed" in caplog.text


def test_a_kernel_that_cannot_be_built_is_given_up_with_one_warning(kernel_of, caplog):
    calls = []

    def add(state, batch, pairs, *where):
        calls.append(batch)
        raise RuntimeError("no ptxas")

    kernel, batch = kernel_of(add), made_up(0, 3, 30)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert use(kernel, batch) is None
    assert len(calls) == 1
    assert len(caplog.records) == 1
    assert "RuntimeError: no ptxas" in caplog.records[0].message


def test_without_its_compiler_a_kernel_is_given_up_in_silence(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "klmonitor.summary.numba_pass", None)
    kernel = passes.Kernel("Numba", "klmonitor.summary.numba_pass")
    assert use(kernel, made_up(0, 3, 30)) is None
    assert kernel.wrong
    assert not caplog.records


def test_a_kernel_that_fails_is_tried_again_after_a_rest(kernel_of, monkeypatch, caplog):
    monkeypatch.setattr(passes, "REST", 3)
    calls = []

    def add(state, batch, pairs, *where):
        calls.append(batch)
        if len(calls) < 3:  # the trial, and the batch after the first rest
            raise torch.cuda.OutOfMemoryError("full")
        chunked.add(state, batch, pairs, *where)

    kernel, batch = kernel_of(add), made_up(0, 3, 30)
    taken = [use(kernel, batch) is not None for _ in range(10)]
    assert taken == [False] * 8 + [True, True]
    assert kernel.wrong is None
    assert len(caplog.records) == 1


def test_what_does_not_fit_is_the_plain_pass_s(kernel_of):
    kernel = kernel_of(
        lambda *_, **__: pytest.fail("the kernel got it"), fits=lambda batch: batch.segments is None
    )
    batch = made_up(0, 1, 30)
    packed = replace(batch, segments=torch.zeros(30, dtype=torch.int64), prompt_ids=None)
    assert use(kernel, packed) is None
    assert kernel.wrong is None


def test_a_batch_is_added_once_whether_or_not_a_kernel_takes_it(kernel_of, monkeypatch):
    batch = made_up(0, 3, 30)
    counted = batch.mask.sum().item()

    def breaks(state, batch, pairs, *where):
        raise RuntimeError

    for add in (chunked.add, breaks):
        monkeypatch.setattr(passes, "TOKENS", kernel_of(add))
        state = Summary.empty(SummaryConfig())
        passes.accumulate(state, batch, default_pairs(batch.log_probs), place=Place())
        assert state.policies[0, 0].item() == counted


@pytest.mark.parametrize("at", [2, 3], ids=["the first batch", "a later one"])
def test_what_a_kernel_leaves_behind_when_it_fails_is_taken_back(kernel_of, monkeypatch, at):
    batch, calls = made_up(0, 3, 30, policies=3), []
    pairs = default_pairs(batch.log_probs)
    assert len(pairs) > 1

    def breaks_at_the_second_pair(state, batch, pairs, *where):
        calls.append(len(calls))
        chunked.add(state, batch, pairs if len(calls) < at else pairs[:1], *where)
        if len(calls) == at:  # the trial is the first
            raise MemoryError

    kernel = kernel_of(breaks_at_the_second_pair)
    monkeypatch.setattr(passes, "TOKENS", kernel)
    found, expected = Summary.empty(SummaryConfig()), Summary.empty(SummaryConfig())
    found.pulls[1] = expected.pulls[1] = 3.0  # of an audit, before any batch
    for micro_batch in range(2):
        passes.accumulate(found, batch, pairs, place=Place(0, micro_batch))
        chunked.add(expected, batch, pairs, Place(0, micro_batch), 0)
    assert len(calls) == at
    assert np.array_equal(found.whole(), expected.whole())
    for name in ORDERED:
        assert np.array_equal(found.arrays[name], expected.arrays[name]), name


def test_every_combination_of_dtypes_is_tried_first(kernel_of):
    tried = []

    def add(state, batch, pairs, *where):
        tried.append(batch.log_probs["ref"].dtype)
        chunked.add(state, batch, pairs, *where)

    kernel = kernel_of(add)
    for dtype in (torch.float32, torch.float64, torch.float32):
        use(kernel, made_up(0, 3, 30, dtypes=(dtype,)))
    assert tried == [torch.float32] * 2 + [torch.float64] * 2 + [torch.float32]


@pytest.mark.parametrize("compiled", [True, False])
def test_another_default_device_changes_nothing(compiled, monkeypatch):
    batch, states = made_up(0, 3, 30), []
    for device in ("cpu", "meta"):
        kernel = passes.Kernel("Numba", "klmonitor.summary.numba_pass", passes.TOKENS.loader)
        monkeypatch.setattr(passes, "TOKENS", kernel)
        choose_pass(monkeypatch, "compiled" if compiled else "plain")
        state = Summary.empty(SummaryConfig())
        with torch.device(device):
            passes.accumulate(state, batch, default_pairs(batch.log_probs), place=Place())
        states.append(state)
    assert (kernel.wrong is None) == compiled
    assert np.array_equal(states[0].whole(), states[1].whole())
