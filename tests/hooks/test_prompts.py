"""The integer that stands for a prompt."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from klmonitor.hooks.prompts import prompt_keys

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
