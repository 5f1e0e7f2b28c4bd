"""What a KL term pulls where rows matter: against every token's c, loops and plain numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from klmonitor import Monitor, Penalty

SHAPE = (24, 13)


def drawn(seed=0, off=0.3):
    """Policy, old, ref, mask and prompts of a batch."""
    rng = np.random.default_rng(seed)
    old = -rng.exponential(1.0, SHAPE) - 3
    policy = old + off * rng.normal(size=SHAPE)
    ref = policy + rng.standard_t(5, SHAPE)
    mask = np.arange(SHAPE[1]) < rng.integers(3, SHAPE[1] + 1, SHAPE[0])[:, None]
    return {"policy": policy, "old": old, "ref": ref}, mask, rng.permutation(np.arange(24) // 4)


def step_of(penalty, log_probs, mask, *, parts=1, **given):
    """The numbers of a step, observed in so many parts."""
    pair = "policy_ref" if isinstance(penalty, Penalty) else next(iter(penalty))
    monitor = Monitor(penalty=penalty, pairs=[pair])
    split = {name: np.array_split(x, parts) for name, x in log_probs.items()}
    rows = {name: np.array_split(x, parts) for name, x in given.items() if np.ndim(x)}
    fixed = {name: x for name, x in given.items() if not np.ndim(x)}
    for i, some in enumerate(np.array_split(mask, parts)):
        monitor.observe(
            mask=some,
            **{name: x[i] for name, x in (split | rows).items()},
            **fixed,
        )
    report = monitor.step(1)
    assert monitor.errors == 0
    monitor.close()
    return report.pairs[pair]


def plain(c, d, w, mask):
    """The slope of c / rho on t under the weights rho, and its error, by definition."""
    t = -d
    index = np.nonzero(mask)[0]
    c, t, w = (x[mask] for x in (c, t, w))
    x, y = t, c / w
    design = np.stack([np.ones_like(x), x], 1)
    base, slope = np.linalg.solve(design.T @ (w[:, None] * design), design.T @ (w * y))
    off = x - np.average(x, weights=w)
    influence = np.bincount(index, weights=w * (y - base - slope * x) * off)
    rows = len(np.unique(index))
    return slope, math.sqrt(rows / (rows - 1) * (influence**2).sum()) / (w * off**2).sum()


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(
    "penalty",
    [
        Penalty("k3", beta=0.1),
        Penalty("k3", ratio="detached", clamp=0.5, beta=0.1),
        Penalty("k3", ratio="differentiated", clamp=0.5, beta=0.1),
        Penalty("k3", ratio="differentiated", level="geometric", beta=0.1),
        Penalty("k1", "reward", ratio="differentiated", returns="sequence", beta=0.1),
        Penalty("k1", "reward", ratio="differentiated", returns="to_go", beta=0.1),
    ],
)
def test_off_policy_and_over_sequences_the_slope_is_the_regressions(penalty, parts):
    log_probs, mask, _ = drawn()
    d, log_ratio = (log_probs[a] - log_probs[b] for a, b in (("ref", "policy"), ("policy", "old")))
    c, w = penalty.coefficient(d, log_ratio, mask), np.exp(log_ratio)
    slope, error = plain(c, d, w, mask)
    pair = step_of(penalty, log_probs, mask, parts=parts)
    assert pair["penalty/effective_beta"] == pytest.approx(0.1 * slope, rel=1e-9)
    assert pair["penalty/effective_beta_se"] == pytest.approx(0.1 * error, rel=1e-6)
    assert pair["penalty/pull"] == pytest.approx(0.1 * c[mask].mean(), rel=1e-6)
    opposite = np.mean((c * d)[mask] > 0)
    assert pair["penalty/opposite_share"] == pytest.approx(opposite, abs=0.02)
    if penalty.clamp:
        dead = mask & (penalty.coefficient(d) == 0)
        assert pair["penalty/dead_share"] == pytest.approx(dead.sum() / mask.sum(), abs=1e-9)
        lost = np.abs(d[dead]).sum() / np.abs(d[mask]).sum()
        assert pair["penalty/dead_pull"] == pytest.approx(lost, abs=0.01)


def test_rloo_takes_off_the_mean_of_the_prompts_others_wherever_they_are():
    log_probs, mask, prompts = drawn(3)
    penalty = Penalty(
        "k1", "reward", ratio="differentiated", level="sequence", returns="sequence",
        leave_one_out=4, beta=0.1,
    )  # fmt: skip
    d = log_probs["ref"] - log_probs["old"]
    ratio = np.exp(np.where(mask, log_probs["policy"] - log_probs["old"], 0).sum(1))
    returns = np.where(mask, -d, 0).sum(1)
    c = np.zeros(SHAPE)
    for i, prompt in enumerate(prompts):
        others = [j for j in range(24) if prompts[j] == prompt and j != i]
        c[i] = ratio[i] * (returns[i] - returns[others].mean())
    w = np.exp(log_probs["policy"] - log_probs["old"])
    slope, error = plain(c, d, w, mask)
    pair = step_of({"old_ref": penalty}, log_probs, mask, prompt_ids=prompts)
    assert pair["penalty/effective_beta"] == pytest.approx(0.1 * slope, rel=1e-9)
    assert pair["penalty/effective_beta_se"] == pytest.approx(0.1 * error, rel=1e-6)
    order = np.argsort(prompts, kind="stable")
    found = penalty.coefficient(d[order], np.log(w)[order], mask[order])
    np.testing.assert_allclose(found, np.where(mask, c, 0)[order], atol=1e-12)
    torn = step_of({"old_ref": penalty}, log_probs, mask, prompt_ids=prompts, parts=24)
    assert math.isnan(torn["penalty/effective_beta"])
    assert math.isnan(step_of({"old_ref": penalty}, log_probs, mask)["penalty/effective_beta"])


def test_beta_is_what_was_observed_last_and_is_averaged_over_tokens():
    log_probs, mask, _ = drawn()
    penalty = Penalty("k3", ratio="differentiated", beta=0.1)
    assert step_of(penalty, log_probs, mask)["penalty/beta"] == 0.1
    pair = step_of(penalty, log_probs, mask, beta=0.03)
    assert pair["penalty/beta"] == pytest.approx(0.03, rel=1e-12)
    assert pair["penalty/effective_beta"] == pytest.approx(0.03, rel=1e-9)
    assert pair.penalty.startswith("0.03 x rho*k3")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("shape", ["B", "BT"])
def test_the_tokens_whose_penalty_overrules_the_reward(shape, dtype):
    log_probs, mask, _ = drawn(5)
    rng = np.random.default_rng(9)
    advantages = torch.tensor(rng.normal(size=SHAPE[0] if shape == "B" else SHAPE)).to(dtype)
    advantages[0] = 0
    a = advantages.double().numpy()
    a = np.broadcast_to(a[:, None], SHAPE) if shape == "B" else a
    penalty = Penalty("k3", beta=0.7)
    log_ratio = log_probs["policy"] - log_probs["old"]
    d = log_probs["ref"] - log_probs["policy"]
    c, rho = penalty.coefficient(d), np.exp(log_ratio)
    rewarded = beside = given_up = 0
    paid, reward = [], []
    for i, j in zip(*np.nonzero(mask), strict=True):
        if a[i, j] == 0:
            continue
        rewarded += 1
        without, with_it = -a[i, j] * rho[i, j], 0.2 * c[i, j] - a[i, j] * rho[i, j]
        overruled = without * with_it < 0
        beside += overruled
        given_up += overruled and d[i, j] > 0
        paid.append(abs(0.2 * c[i, j]))
        reward.append(abs(without))
    pair = step_of(penalty, log_probs, mask, advantages=advantages.numpy(), beta=0.2)
    assert 0 < beside < rewarded
    assert pair["penalty/overruled"] == pytest.approx(beside / rewarded, rel=1e-12)
    assert pair["penalty/overruled_lost"] == pytest.approx(given_up / beside, rel=1e-12)
    assert pair["penalty/paid"] == pytest.approx(np.mean(paid), rel=1e-9)
    assert pair["penalty/reward"] == pytest.approx(np.mean(reward), rel=1e-9)


def test_packed_tokens_have_the_advantages_of_their_sequences():
    log_probs, mask, _ = drawn(5)
    advantages = np.random.default_rng(9).normal(size=SHAPE[0])
    whole = step_of(Penalty("k3", beta=0.2), log_probs, mask, advantages=advantages)
    monitor = Monitor(penalty=Penalty("k3", beta=0.2))
    lengths = mask.sum(1)
    packed = {name: torch.tensor(x[mask]) for name, x in log_probs.items()}
    monitor.observe(
        **packed,
        cu_seqlens=torch.tensor([0, *lengths.cumsum()]),
        advantages=torch.tensor(advantages),
    )
    pair = monitor.step(1).pairs["policy_ref"]
    names = ("overruled", "overruled_lost", "paid", "reward", "effective_beta")
    for name in (f"penalty/{name}" for name in names):
        assert pair[name] == pytest.approx(whole[name], rel=1e-9)


def test_what_cannot_be_is_refused_at_the_first_call():
    log_probs, mask, _ = drawn()
    for given, error, words in (
        ({"advantages": np.ones(3)}, ValueError, "one a sequence, or one a token"),
        ({"advantages": np.ones(24, dtype=int)}, TypeError, "pass floats"),
        ({"beta": math.nan}, ValueError, "beta is nan"),
    ):
        with pytest.raises(error, match=words):
            Monitor(penalty=Penalty()).observe(mask=mask, **log_probs, **given)
    with pytest.raises(ValueError, match="of no KL term"):
        Monitor().observe(mask=mask, **log_probs, beta=0.1)
