"""What a KL term pulls, summed: compiled and by numpy alike."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
import torch

from klmonitor import Penalty
from klmonitor.pairs import PAIR_INDEX, default_pairs
from klmonitor.summary import pull_sums, pulls
from klmonitor.summary.batch import build
from klmonitor.summary.extras import Extras
from klmonitor.summary.fields import PULL, PULL_GRAM, PULL_SUMS, PULL_TERMS, SummaryConfig
from klmonitor.summary.state import Summary
from tests.helpers.steps import choose_pass

TERMS = [
    Penalty("k3", beta=0.3),
    Penalty("k2", clamp_d=0.5),
    Penalty("k3", ratio="differentiated", clamp=1.0),
    Penalty("k1", ratio="detached", level="geometric"),
    Penalty("abs", straight_through=True),
    Penalty("k1", "reward", returns="to_go"),
    Penalty("k1", "reward", returns="sequence", leave_one_out=3),
]


def drawn(seed):
    """A batch, what is known beside it and a term whose tokens each have their own c."""
    rng = np.random.default_rng(seed)
    packed = rng.random() < 0.4
    rows, columns = int(rng.integers(1, 7)), int(rng.choice([1, 2, 9, 40]))
    lengths = rng.integers(0, columns + 1, rows)
    lengths[rng.integers(rows)] += 1
    shape = (int(lengths.sum()),) if packed else (rows, columns)
    common, noise = -rng.exponential(1.0, shape), rng.choice([1e-3, 0.4, 3.0])
    given = {}
    for name in (("policy", "ref"), ("policy", "old", "ref"), ("rollout", "old", "ref"))[seed % 3]:
        values = common - noise * rng.exponential(1.0, shape)
        odd = rng.choice([0.0, -200.0, 90.0, np.inf, -np.inf, np.nan], shape)
        values = np.where(rng.random(shape) < rng.choice([0, 0.1]), odd, values)
        dtype = (torch.float32, torch.bfloat16)[int(rng.random() < 0.2)]
        given[name] = torch.tensor(values).to(dtype)
    mask = torch.tensor(rng.random(shape) < 0.8) if rng.random() < 0.7 else None
    layout = {"cu_seqlens": torch.tensor([0, *np.cumsum(lengths)])} if packed else {}
    batch = build(given, mask=mask, **layout)
    advantages = torch.tensor(rng.normal(size=batch.shape) * rng.choice([1e-3, 1.0]))
    advantages[torch.tensor(rng.random(batch.shape) < 0.2)] = float(rng.choice([0.0, np.nan]))
    beta = rng.choice([None, 0.07])
    extras = Extras(None, None, advantages if rng.random() < 0.7 else None, beta)
    penalty = Penalty(
        rng.choice(["k1", "k2", "k3", "abs", "square"]),
        rng.choice(["loss", "reward"]),
        rng.choice([None, "detached", "differentiated"]),
        rng.choice([None, 0.3]),
        beta=float(rng.choice([0.04, -1.0, 0.0])),
        clamp_d=rng.choice([None, 0.5]),
    )
    if penalty.placed == "loss" and rng.random() < 0.3:
        penalty = Penalty(penalty.estimator, ratio=penalty.ratio, straight_through=True)
    tokens = batch.shape[0] * batch.shape[1]
    tokens = tokens if rng.random() < 0.6 else int(rng.integers(0, tokens + 1))
    return batch, penalty, extras, tokens if packed else tokens // columns * columns


@pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")
@pytest.mark.parametrize("first", range(0, 400, 50))
def test_the_compiled_pulls_are_the_plain_ones(monkeypatch, first):
    counted = [of_both(monkeypatch, *drawn(seed)) for seed in range(first, first + 50)]
    assert sum(tokens > 0 for tokens in counted) >= 35, "what is compared is something"


def dtypes_of(batch):
    return {x.dtype for x in batch.log_probs.values()}


def of_both(monkeypatch, batch, penalty, extras, tokens):
    """Compares the sums of the compiled and the plain pass; how many tokens these are of."""
    pair = next(x for x in default_pairs(batch.log_probs) if x.p == "ref")

    def sums():
        state = Summary.empty(SummaryConfig())
        pulls.add(state, batch, pair, penalty, extras, tokens)
        return state.pulls[PAIR_INDEX[pair.name]].numpy()

    with monkeypatch.context() as patch:
        choose_pass(patch, "plain")
        plain = sums()
    with monkeypatch.context() as patch:
        choose_pass(patch, "compiled")
        patch.setattr(pulls, "add_plain", lambda *_: pytest.fail("it was not used"))
        patch.setattr(pulls.KERNEL, "tried", {frozenset(dtypes_of(batch))})
        compiled = sums()
    for name in (*PULL_SUMS, *PULL_TERMS, *PULL_GRAM):
        place, terms = PULL[name], [abs(plain[PULL[x]]) for x in name.split(".")]
        scale = math.prod(max(1.0, x) for x in terms) if "." in name else tokens
        np.testing.assert_allclose(
            compiled[place], plain[place], rtol=1e-7, atol=1e-9 * scale, err_msg=name
        )
    return plain[PULL["tokens"]]


def test_a_kernel_that_pulls_otherwise_is_not_used(monkeypatch):
    """Each term of the trial is compared."""
    batch, *_ = drawn(0)
    pairs = default_pairs(batch.log_probs)
    for wrong in pulls.TRIED[:: len(pulls.TRIED) // 5]:

        def add(state, batch, pairs, penalty, *rest, wrong=wrong):
            pull_sums.add_plain(state, batch, pairs, penalty, *rest)
            if penalty == wrong:
                state.pulls[:, PULL["c"]] *= 1 + 1e-6

        with pytest.raises(ArithmeticError, match="other pulls"):
            pulls.compare(add, batch, pairs)
    pulls.compare(pull_sums.add_plain, batch, pairs)


@pytest.mark.parametrize("penalty", TERMS[:3], ids=str)
def test_overflow_is_no_warning(recwarn, penalty):
    """A token of d = 800 is one of the sums' own, and nothing to print into training."""
    policy = torch.tensor([[-801.0, -1.0, -2.0]])
    batch = build({"policy": policy, "ref": torch.tensor([[-1.0, -1.5, -1.2]])})
    state, pair = Summary.empty(SummaryConfig()), default_pairs(batch.log_probs)[0]
    pulls.add(state, batch, pair, penalty, Extras(), 3)
    assert not recwarn.list
    assert state.pulls[PAIR_INDEX[pair.name], PULL["tokens"]] >= 2
