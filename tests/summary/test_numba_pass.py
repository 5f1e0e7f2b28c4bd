"""The compiled pass on the CPU finds what the plain one finds."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from klmonitor.pairs import default_pairs
from klmonitor.summary import chunked
from klmonitor.summary.batch import build
from klmonitor.summary.extremes import Place
from klmonitor.summary.fields import COLUMN, SummaryConfig
from klmonitor.summary.state import Summary
from tests.helpers.batches import CASES, made_up

pytest.importorskip("numba", reason="numba is not installed")
from klmonitor.summary import numba_pass  # it needs numba

TWO_GROUPS = SummaryConfig(groups=("math",), prompt_buckets=64)


def packed():
    """The tokens of rows of different lengths, one behind the other."""
    whole = made_up(30, 6, 300, odd=0.02)
    lengths = torch.tensor([300, 0, 120, 1, 299, 17])
    inside = torch.arange(300) < lengths.unsqueeze(1)
    ends = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    return build(
        {name: x[inside] for name, x in whole.log_probs.items()},
        mask=whole.mask[inside],
        cu_seqlens=ends,
        prompt_ids=torch.tensor([5, 5, -3, 2**60, 5, 0]),
    )


def with_ids():
    """Rows with token ids and prompt ids."""
    whole = made_up(31, 6, 300, policies=4, odd=0.02)
    ids = torch.arange(1800).view(6, 300)
    return replace(whole, token_ids=ids, prompt_ids=torch.tensor([7, 7, 1, 1, 2**50, -1]))


def two_halves():
    """Two formats of two bytes: the bits of one are other numbers in the other."""
    whole = made_up(32, 6, 300, scale=0.1, dtypes=(torch.float16,))
    names = list(whole.log_probs)
    other = whole.log_probs[names[1]].to(torch.bfloat16)
    return replace(whole, log_probs={**whole.log_probs, names[1]: other})


BATCHES = {**CASES, "packed": packed, "with ids": with_ids, "two halves": two_halves}


def both(batches, groups):
    """The states that the two passes make of some micro-batches."""
    states = Summary.empty(TWO_GROUPS), Summary.empty(TWO_GROUPS)
    for number, batch in enumerate(batches):
        pairs, place = default_pairs(batch.log_probs), Place(2, number)
        rows = torch.arange(batch.n_sequences) % 2 if groups == "by row" else 1
        for state, add in zip(states, (numba_pass.add, chunked.add), strict=True):
            add(state, batch, pairs, place, rows)
    return states


@pytest.mark.parametrize("groups", ["one", "by row"])
@pytest.mark.parametrize("name", BATCHES)
def test_both_passes_find_the_same(name, groups):
    batches = [BATCHES[name](), BATCHES["with ids"](), BATCHES[name]()]
    found, expected = both(batches, groups)
    assert torch.equal(found.histogram, expected.histogram)
    assert torch.equal(found.policies, expected.policies)
    assert torch.equal(found.maxima, expected.maxima)
    assert torch.equal(found.tokens, expected.tokens)
    assert_close(found.sums, expected.sums)
    assert_close(found.prompts, expected.prompts)
    assert_close(found.sequences[..., :1], expected.sequences[..., :1])  # rounding may swap equals


def assert_close(found, expected):
    """Equal but for rounding, on the scale of each column."""
    known = expected.isfinite()
    assert torch.equal(found[~known], expected[~known])
    scale = torch.where(known, expected, 0.0).abs().flatten(0, -2).amax(0)
    assert bool((~known | ((found - expected).abs() <= 1e-12 * scale)).all())


def test_counts_are_exact():
    found, expected = both([BATCHES["nan, inf and huge"]()], "by row")
    for name in ("core/n", "tail/n", "nan", "inf", "clamped", "zero", "on_policy", "sequences"):
        assert torch.equal(found.sums[..., COLUMN[name]], expected.sums[..., COLUMN[name]]), name


def test_log_probs_beyond_float32_pass_in_silence():
    huge = torch.tensor([[-1e300, -math.inf, math.nan, 1e200, 0.0]], dtype=torch.float64)
    batch = build({"policy": huge, "ref": -huge.flip(1)})
    states = [Summary.empty(TWO_GROUPS) for _ in range(2)]
    for state, add in zip(states, (numba_pass.add, chunked.add), strict=True):
        add(state, batch, default_pairs(batch.log_probs), Place(), 0)
    assert torch.equal(states[0].histogram, states[1].histogram)
    assert torch.equal(states[0].policies, states[1].policies)
