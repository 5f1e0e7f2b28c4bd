"""The integer that stands for a prompt."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from klmonitor.hooks import prompts
from klmonitor.hooks.prompts import DROPPED_BITS, CompiledKeys, prompt_keys

TOKENS = st.lists(st.integers(0, 200_000), min_size=1, max_size=12)


def key(tokens, left=0, right=0, fill=0):
    ids = torch.tensor([[fill] * left + tokens + [fill] * right])
    mask = torch.tensor([[0] * left + [1] * len(tokens) + [0] * right])
    return prompt_keys(ids, mask).item()


@given(TOKENS, st.integers(0, 9), st.integers(0, 9), st.integers(0, 200_000))
def test_padding_changes_nothing(tokens, left, right, fill):
    assert key(tokens, left, right, fill) == key(tokens)


@given(TOKENS, TOKENS)
def test_other_prompts_have_other_keys(one, other):
    assert (key(one) == key(other)) == (one == other)


@given(TOKENS)
def test_a_float64_holds_it(tokens):
    value = key(tokens)
    assert 0 <= value < 2**53
    assert int(float(value)) == value


def test_a_hundred_thousand_prompts_do_not_collide():
    ids = torch.randint(0, 100, (100_000, 16), generator=torch.Generator().manual_seed(0))
    ids = ids.unique(dim=0)
    keys = prompt_keys(ids, torch.ones_like(ids))
    assert keys.unique().numel() == ids.shape[0]
    buckets = torch.bincount(keys % 4096, minlength=4096).double()
    expected = ids.shape[0] / 4096
    chi2 = ((buckets - expected) ** 2 / expected).sum().item()
    assert 3700 < chi2 < 4500, "4095 degrees of freedom: mean 4095, sd 90"


def test_the_rows_of_a_batch_do_not_touch_each_other():
    ids = torch.tensor([[0, 5, 6], [5, 6, 7], [0, 5, 6]])
    mask = torch.tensor([[0, 1, 1], [1, 1, 1], [0, 1, 1]])
    first, second, third = prompt_keys(ids, mask).tolist()
    assert first == third == key([5, 6])
    assert second == key([5, 6, 7])


# --- compiled -----------------------------------------------------------------------------------
needs_numba = pytest.mark.skipif(
    importlib.util.find_spec("numba") is None, reason="numba is not installed"
)


def drawn(seed):
    """Ids and a mask of any layout: padded anywhere, of any integers, transposed."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 40, 2))
    ids = torch.from_numpy(rng.integers(-(2**62), 2**62, shape))
    mask = torch.from_numpy(rng.random(shape) < rng.choice([0.0, 0.5, 1.0]))
    if seed % 3 == 1:
        return ids.T, mask.T.long()
    return ids.int() if seed % 3 == 2 else ids, mask


def by_hand(ids, mask):
    """As defined, in whole numbers of any size."""
    factors = [int(x) for x in prompts._factors(1 << ids.shape[1].bit_length()).view(np.uint64)]
    keys = []
    for row, inside in zip(ids.tolist(), mask.tolist(), strict=True):
        kept = [token for token, there in zip(row, inside, strict=True) if there]
        total = sum((token + 1) * factors[place] for place, token in enumerate(kept, 1))
        keys.append(total % 2**64 >> DROPPED_BITS)
    return keys


@needs_numba
@pytest.mark.parametrize("by", ["torch", "compiled"])
def test_a_key_is_as_defined(monkeypatch, by):
    own = CompiledKeys()
    own.wrong = "a test wants torch" if by == "torch" else None
    monkeypatch.setattr(prompts, "COMPILED", own)
    for seed in range(60):
        ids, mask = drawn(seed)
        assert prompt_keys(ids, mask).tolist() == by_hand(ids, mask)
    assert own._proven == (by == "compiled")


@needs_numba
@pytest.mark.filterwarnings("error")
def test_masks_of_any_kind_are_compiled_and_of_another_shape_torch_s(monkeypatch):
    own = CompiledKeys()
    monkeypatch.setattr(prompts, "COMPILED", own)
    ids, mask = drawn(4)
    expected = by_hand(ids, mask)
    for some in (mask.bfloat16(), mask.float().requires_grad_(), mask.double()):
        assert prompt_keys(ids, some).tolist() == expected
    assert own._proven
    with pytest.raises(RuntimeError, match="size"):
        prompt_keys(ids, torch.ones(len(ids) + 1, 1))
    assert own._boundary.failures == 0


@needs_numba
def test_a_kernel_that_finds_other_keys_is_not_used(monkeypatch, caplog):
    from klmonitor.summary import numba_prompts

    def fill(ids, inside, factors, dropped, keys):
        numba_prompts._fill_keys(ids, inside, factors, dropped, keys)
        keys[-1] += 1

    own = CompiledKeys()
    monkeypatch.setattr(numba_prompts, "fill_keys", fill)
    monkeypatch.setattr(prompts, "COMPILED", own)
    with np.errstate(over="ignore"):
        for seed in range(3):
            ids, mask = drawn(seed)
            assert prompt_keys(ids, mask).tolist() == by_hand(ids, mask)
    assert own.wrong
    assert len(caplog.records) == 1
    assert "ArithmeticError: other keys" in caplog.records[0].message


def test_without_numba_nothing_is_said(monkeypatch, caplog):
    own = CompiledKeys()
    monkeypatch.setitem(sys.modules, "klmonitor.summary.numba_prompts", None)
    monkeypatch.setattr(prompts, "COMPILED", own)
    ids, mask = drawn(4)
    assert prompt_keys(ids, mask).tolist() == by_hand(ids, mask)
    assert not own._proven
    assert not caplog.records
