"""The compiled signatures are the plain ones, whatever the batch; they are tried before use."""

from __future__ import annotations

import logging
import sys
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from klmonitor.pairs import PAIRS, POLICIES, default_pairs
from klmonitor.summary import passes
from klmonitor.summary import signatures as signed
from klmonitor.summary.batch import build
from klmonitor.summary.extras import Extras
from klmonitor.summary.fields import SENTINEL, SIGNATURES, SummaryConfig
from klmonitor.summary.state import Summary
from tests.helpers.steps import choose_pass

pytest.importorskip("numba", reason="numba is not installed")
from klmonitor.summary import signature_pass  # it needs numba

SEEDS = range(150)
SETS = tuple(
    names
    for size in (2, 3, 4)
    for names in combinations(POLICIES, size)
    if any({pair.q, pair.p} <= set(names) for pair in PAIRS)
)
ODD = (0.0, 0.3, 2.0, -1e10, 1e6, np.inf, -np.inf, np.nan)
FAR = (-30.0, -9999.0, 90.0)
"""Not of packed tokens: the plain pass takes differences of sums over all, which e^d swamps."""
PRODUCTS = ("qq", "pp", "qp", "before", "after")


def pairs_in(names):
    """All that are, not the default ones alone."""
    return tuple(pair for pair in PAIRS if {pair.q, pair.p} <= set(names))


def drawn(seed, odd=None, dtypes=(torch.float32,)):
    """A batch whose every property is drawn, with what is known beside; log-probs vary."""
    rng = np.random.default_rng(seed)
    packed = rng.random() < 0.5
    rows, columns = int(rng.integers(1, 9)), int(rng.choice([1, 2, 3, 12, 40, 40]))
    lengths = rng.integers(0, columns + 1, rows) * (rng.random(rows) < 0.8)
    lengths[rng.integers(rows)] += 1  # one token at least
    shape = (int(lengths.sum()),) if packed else (rows, columns)
    common = -rng.exponential(rng.choice([0.05, 1.0]), shape) - 0.001
    noise = rng.choice([0.02, 0.5])
    share = rng.choice([0.005, 0.3]) if odd is None else odd
    log_probs = {}
    kept = rng.random(shape) < rng.choice([0.1, 0.8, 1.0])
    kept[..., :1] &= rng.random() < 0.5
    if not packed:
        kept[:, columns // 2 :] &= rng.random((rows, 1)) < 0.5
        kept &= rng.random((rows, 1)) < 0.8
    masked, step = rng.random() < 0.7, int(rng.choice([-1, 1]))
    order = [np.arange(n)[::step] for n in (lengths if packed else [columns] * rows)]
    padded = np.concatenate(order).reshape(shape) < rng.choice([0, 5, 8, 20])  # at either end
    for name in SETS[seed % len(SETS)]:
        values = common * rng.uniform(0.9, 1.1, shape) - noise * rng.exponential(1.0, shape)
        values[padded] = -rng.choice([7.0, 1e-4, 1e-4])
        odd_values = rng.choice(ODD if packed else (*ODD, *FAR), shape)
        values = np.where(rng.random(shape) < share, odd_values, values)
        if masked:  # whatever lies there
            values = np.where(kept, values, rng.choice([np.nan, 1e30, -5.0, 0.0], shape))
        values = torch.tensor(values.astype(np.float32))
        log_probs[name] = values.to(dtypes[int(rng.integers(len(dtypes)))])
    layout = {"cu_seqlens": torch.tensor([0, *np.cumsum(lengths)])} if packed else {}
    batch = build(log_probs, mask=torch.tensor(kept) if masked else None, **layout)
    entropy = torch.tensor(rng.exponential(0.5, shape).astype(np.float32)).view(batch.shape)
    entropy[torch.tensor(rng.random(batch.shape) < 0.1)] = float(rng.choice([np.nan, np.inf]))
    lag = torch.tensor(rng.integers(-1, 6, batch.n_sequences))
    extras = Extras(entropy if rng.random() < 0.7 else None, lag if rng.random() < 0.7 else None)
    return batch, extras, int(rng.integers(0, 60))


def of_both(monkeypatch, batch, extras, taken=0):
    """The sums of the compiled pass and of the plain one."""
    pairs, found = pairs_in(batch.log_probs), []
    for name in ("compiled", "plain"):
        state = Summary.empty(SummaryConfig())
        with monkeypatch.context() as patch:
            choose_pass(patch, name)
            if name == "compiled":
                patch.setattr(signed, "add_plain", lambda *_: pytest.fail("it was not used"))
                patch.setattr(signed.KERNEL, "_prove", lambda *_: None)
            found.append((signed.add(state, batch, pairs, extras, taken), state.signatures))
    assert found[0][0] == found[1][0]
    return found[0][1].numpy(), found[1][1].numpy()


def assert_close(found, expected, batch, tolerance=1e-10):
    """Equal to a tolerance of the sums, or of the terms where these may cancel."""
    values = torch.stack([x.double() for x in batch.log_probs.values()])
    values = values[values.abs() < SENTINEL]
    large = float(values.abs().amax()) if values.numel() else 1.0
    terms = dict.fromkeys(("d", "gap", "surprise", "first", "last", "middle", "lone"), 1.0)
    terms |= dict.fromkeys(("shift", "slope", "who", *PRODUCTS), large**2)
    terms |= {"context": max(large, 1.0) ** 4}
    tokens = batch.shape[0] * batch.shape[1]
    for column, name in enumerate(SIGNATURES):
        ratio, _, what = name.partition("/")
        scale = max(1.0, tokens * terms.get(ratio, 1.0)) ** (2 if len(what) == 2 else 1)
        np.testing.assert_allclose(
            found[:, column], expected[:, column], tolerance, tolerance * scale, err_msg=name
        )


@pytest.fixture(autouse=True)
def _numpy_as_in_the_package():
    with np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize("seed", SEEDS)
def test_both_passes_find_the_same_of_log_probs(seed, monkeypatch):
    batch, extras, taken = drawn(seed, odd=0.0)
    monkeypatch.setattr(signed, "SAMPLED", 100)
    assert_close(*of_both(monkeypatch, batch, extras, taken), batch)


@pytest.mark.parametrize("seed", SEEDS)
def test_and_of_what_is_none(seed, monkeypatch):
    batch, extras, taken = drawn(1000 + seed)
    monkeypatch.setattr(signed, "SAMPLED", 100)
    assert_close(*of_both(monkeypatch, batch, extras, taken), batch)


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("seed", range(30))
def test_and_of_every_float(seed, monkeypatch):
    batch, extras, _ = drawn(2000 + seed, odd=0.0, dtypes=DTYPES)
    assert_close(*of_both(monkeypatch, batch, extras), batch)


def test_and_of_memory_that_is_in_another_order(monkeypatch):
    rng = np.random.default_rng(0)
    whole = {name: torch.tensor(-rng.exponential(1.0, (40, 9))) for name in POLICIES}
    mask, entropy = torch.tensor(rng.random((40, 9)) < 0.8), torch.rand(40, 9)
    plain = build({name: x.T.contiguous() for name, x in whole.items()}, mask=mask.T.contiguous())
    turned = build({name: x.T for name, x in whole.items()}, mask=mask.T)
    inner = {name: torch.cat([x.T, x.T, x.T], 1)[:, 40:80] for name, x in whole.items()}
    expected, _ = of_both(monkeypatch, plain, Extras(entropy.T.contiguous()))
    for batch in (turned, build(inner, mask=mask.T)):
        found, _ = of_both(monkeypatch, batch, Extras(entropy.T))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_masked_changes_no_bit(packed, monkeypatch):
    rng = np.random.default_rng(1)
    values = {name: torch.tensor(-rng.exponential(1.0, (6, 30))).float() for name in POLICIES}
    mask, entropy = torch.tensor(rng.random((6, 30)) < 0.6), torch.rand(6, 30)
    found = []
    for garbage in (-1.0, 0.0, 5.0, 1e30, np.inf, -np.inf, np.nan):
        dirty = {name: torch.where(mask, x, garbage) for name, x in values.items()}
        h = torch.where(mask, entropy, garbage)
        if packed:
            ends = torch.arange(0, 181, 30)
            flat = {name: x.flatten() for name, x in dirty.items()}
            batch = build(flat, mask=mask.flatten(), cu_seqlens=ends)
        else:
            batch = build(dirty, mask=mask)
        found.append(of_both(monkeypatch, batch, Extras(h.view(batch.shape)))[0])
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_padding_with_holes_between_is_padding_to_both(monkeypatch):
    rng = np.random.default_rng(2)
    values = {name: -torch.tensor(rng.exponential(1.0, (4, 40))).float() for name in POLICIES}
    mask = torch.ones(4, 40, dtype=torch.bool)
    mask[:, 21::2] = False
    for x in values.values():
        x[:, 20::2] = -7.0
    found, expected = of_both(monkeypatch, build(values, mask=mask), Extras())
    column = SIGNATURES.index("padded")
    assert set(found[:, column]) == set(expected[:, column]) == {40.0}


# --- a kernel is tried before it is used ---------------------------------------------------------
def kernel_of(monkeypatch, add):
    """The signatures' kernel, with another pass."""
    module = SimpleNamespace(fits=lambda batch: True, add=add)
    monkeypatch.setitem(sys.modules, "made_up_signatures", module)
    kernel = passes.Kernel(
        "made-up", "made_up_signatures", agree=signed.compare, undo=signed.KERNEL._undo
    )
    monkeypatch.setattr(signed, "KERNEL", kernel)
    return kernel


def added(batch, times=1):
    """The signatures of a batch, added some times."""
    state = Summary.empty(SummaryConfig())
    for _ in range(times):
        signed.add(state, batch, default_pairs(batch.log_probs), Extras(), 0)
    return state.signatures.clone()


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    names = ("rollout", "old", "ref")
    return build({name: torch.tensor(-rng.exponential(1.0, (5, 9))).float() for name in names})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("names", SETS, ids="-".join)
def test_the_kernel_agrees_with_the_plain_pass_in_every_trial(names, dtype):
    values = {name: -torch.rand(2, 3).to(dtype) for name in names}
    for mask in (None, torch.ones(2, 3, dtype=torch.bool)):
        signed.compare(signature_pass.add, build(values, mask=mask), pairs_in(names))


SEEN = [name for name in SIGNATURES if not name.startswith(("weighed", "loss", "unclipped"))]


@pytest.mark.parametrize("name", SEEN)
def test_one_that_finds_another_sum_is_given_up_with_one_warning(name, batch, monkeypatch, caplog):
    plain, column = signed.add_plain, SIGNATURES.index(name)

    def wrong(state, *some):
        plain(state, *some)
        sums = state.signatures[3]
        sums[column] += 1e-5 * max(1.0, abs(float(sums[column])))

    expected = Summary.empty(SummaryConfig())
    plain(expected, batch, default_pairs(batch.log_probs), 1, Extras(), *batch.shape)
    kernel = kernel_of(monkeypatch, wrong)
    with caplog.at_level(logging.WARNING):
        found = added(batch, times=3)
    torch.testing.assert_close(found, 3 * expected.signatures, rtol=1e-12, atol=1e-12)
    assert kernel.wrong == "ArithmeticError: other signatures"
    assert kernel._boundary.failures == 1
    assert [r.message.count("the plain pass does its work") for r in caplog.records] == [1]


def test_one_that_raises_leaves_nothing_and_is_tried_again_after_a_rest(batch, monkeypatch, caplog):
    monkeypatch.setattr(passes, "REST", 3)
    calls, plain = [], signed.add_plain

    def breaks(state, *some):
        calls.append(len(calls))
        plain(state, *some)
        if len(calls) == 4:  # of a batch, after the trial of both pairs
            raise MemoryError

    kernel = kernel_of(monkeypatch, breaks)
    found = added(batch, times=8)
    assert len(calls) == 2 + 8 - 3
    assert kernel.wrong is None
    assert kernel._boundary.failures == 1
    assert len(caplog.records) == 1
    torch.testing.assert_close(found, 8 * added(batch), rtol=1e-12, atol=0)


def test_a_step_s_tokens_cost_one_call_of_the_kernel(batch, monkeypatch):
    calls, add = [], signature_pass.add_sequences
    monkeypatch.setattr(
        signature_pass, "add_sequences", lambda *some: calls.append(some) or add(*some)
    )
    choose_pass(monkeypatch, "compiled")
    added(batch)
    calls.clear()
    added(batch)
    assert len(calls) == 1
