"""Ratios that no clipping bounds, summed: by their definition, compiled and with numpy alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from klmonitor.pairs import default_pairs
from klmonitor.summary import unclipped, unclipped_sums
from klmonitor.summary.batch import build
from klmonitor.summary.fields import FAR_RATIO, SummaryConfig
from klmonitor.summary.state import Summary
from tests.helpers.steps import choose_pass


def drawn(seed, dtype):
    rng = np.random.default_rng(seed)
    shape = (5, 40)
    old, advantages = -rng.exponential(6.0, shape), rng.normal(size=shape)
    policy = np.where(rng.random(shape) < 0.1, -1e-3, old + 0.3 * rng.normal(size=shape))
    policy[0, :3], advantages[1, :4] = (np.nan, -np.inf, -400.0), (np.nan, np.inf, 0.0, -0.0)
    old[0, 3] = -900.0
    mask = rng.random(shape) < 0.8
    log_probs = {name: torch.tensor(x).to(dtype) for name, x in (("policy", policy), ("old", old))}
    return log_probs, torch.tensor(mask), torch.tensor(advantages).to(dtype)


def by_definition(log_probs, mask, advantages):
    """One token after the other."""
    sums = dict.fromkeys(unclipped_sums.NAMES, 0.0)
    tokens = zip(
        *(x.double().flatten().tolist() for x in (*log_probs.values(), advantages)),
        mask.flatten().tolist(),
        strict=True,
    )
    for policy, old, advantage, counts in tokens:
        d = min(policy - old, 300.0)
        if not counts or not np.isfinite(policy - old) or not np.isfinite(advantage):
            continue
        ratio = np.exp(d)
        sums["weighed"] += 1
        sums["loss"] += abs(advantage) * (min(ratio, FAR_RATIO) if advantage > 0 else ratio)
        if advantage < 0 and ratio >= FAR_RATIO:
            sums["unclipped"] += 1
            sums["unclipped_loss"] += abs(advantage) * ratio
            sums["unclipped_d"] += d
    return list(sums.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("by", ["compiled", "numpy"])
def test_each_token_enters_as_defined(monkeypatch, recwarn, by, dtype):
    log_probs, mask, advantages = drawn(1, dtype)
    choose_pass(monkeypatch, "compiled" if by == "compiled" else "plain")
    if by == "compiled" and dtype != torch.float64:
        monkeypatch.setattr(unclipped, "add_plain", lambda *_: pytest.fail("it was not used"))
        monkeypatch.setattr(unclipped.KERNEL, "_prove", lambda *_: None)
    batch, state = build(log_probs, mask=mask), Summary.empty(SummaryConfig())
    unclipped.add(state, batch, default_pairs(batch.log_probs), advantages)
    found = state.signatures.flatten()[unclipped_sums.PLACES]
    expected = by_definition(log_probs, mask, advantages)
    assert expected[2] >= 3
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)
    assert not recwarn.list
    assert np.count_nonzero(state.whole()) == len(unclipped_sums.NAMES), (
        "nothing else is written to"
    )


def test_a_kernel_that_sums_otherwise_is_not_used():
    log_probs, mask, _ = drawn(2, torch.float32)
    batch = build(log_probs, mask=mask)
    pairs = default_pairs(batch.log_probs)
    unclipped.compare(unclipped.add_plain, batch, pairs)
    for place in range(len(unclipped_sums.NAMES)):

        def add(state, *rest, place=place):
            unclipped.add_plain(state, *rest)
            state.signatures.view(-1)[unclipped_sums.PLACES][place] *= 1 + 1e-6

        with pytest.raises(ArithmeticError, match="other signatures"):
            unclipped.compare(add, batch, pairs)
