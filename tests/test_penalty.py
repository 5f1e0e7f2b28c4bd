"""The coefficients of a KL term against automatic differentiation, token by token and in
expectation, and against the published table of placements."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from klmonitor import Penalty
from klmonitor.penalty import VALUES, true_coefficient

# --- terms as a trainer would write them --------------------------------------------------------
PLAIN = {
    "k1": lambda d: -d,
    "k2": lambda d: d**2 / 2,
    "k3": lambda d: torch.exp(d) - 1 - d,
    "abs": torch.abs,
    "square": torch.square,
}


def estimate(penalty, d):
    inside = d if penalty.clamp_d is None else torch.clamp(d, -penalty.clamp_d, penalty.clamp_d)
    f = PLAIN[penalty.estimator](inside)
    if penalty.clamp is not None:
        f = torch.clamp(f, -penalty.clamp, penalty.clamp)
    if penalty.straight_through:
        backward = 0.5 * torch.square(d)
        f = backward - backward.detach() + f.detach()
    return f


def surrogate(penalty, lp, ref, sampler):
    """Minimised by a trainer: [B, T] whose sum over the tokens has the gradient c."""
    f = estimate(penalty, ref - lp)
    log_ratio = lp - sampler
    if penalty.level == "sequence":
        log_ratio = log_ratio.sum(-1, keepdim=True).expand_as(lp)
    elif penalty.level == "geometric":
        log_ratio = log_ratio.mean(-1, keepdim=True).expand_as(lp)
    rho = torch.exp(log_ratio)
    if penalty.placed == "loss":
        weight = {None: torch.ones_like(rho), "detached": rho.detach(), "differentiated": rho}
        return weight[penalty.ratio] * f
    f = f.detach()
    if penalty.returns == "to_go":
        f = f.flip(-1).cumsum(-1).flip(-1)
    elif penalty.returns == "sequence":
        f = f.sum(-1, keepdim=True).expand_as(lp)
    if penalty.leave_one_out:
        groups = f.view(-1, penalty.leave_one_out, f.shape[-1])
        others = (groups.sum(1, keepdim=True) - groups) / (penalty.leave_one_out - 1)
        f = (groups - others).view_as(f)
    return f * (lp if penalty.ratio is None else rho.detach() * lp)


CLAMPS = ({}, {"clamp": 0.3}, {"clamp_d": 0.5}, {"clamp": 0.2, "clamp_d": 0.8})
LOSSES = [
    Penalty(estimator, ratio=ratio, level=level, straight_through=through, **clamps)
    for estimator in PLAIN
    for ratio, level in (
        (None, "token"),
        *itertools.product(("detached", "differentiated"), ("token", "sequence", "geometric")),
    )
    for through in (False, True)
    for clamps in CLAMPS
]
REWARDS = [
    Penalty(estimator, "reward", ratio=ratio, returns=returns, leave_one_out=others, **clamps)
    for estimator in PLAIN
    for ratio in (None, "detached")
    for returns, others in (("token", 0), ("sequence", 0), ("sequence", 3), ("to_go", 0))
    for clamps in CLAMPS
]


def tokens(rows=6, columns=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(3, rows, columns, generator=generator, dtype=torch.float64)
    lp = -1.5 + 0.5 * noise[0]
    return lp, lp + 0.9 * noise[1], lp + 0.4 * noise[2]


@pytest.mark.parametrize("penalty", [*LOSSES, *REWARDS], ids=str)
def test_each_tokens_c_is_the_derivative_of_the_trainers_term(penalty):
    lp, ref, sampler = tokens()
    leaf = lp.clone().requires_grad_()
    (expected,) = torch.autograd.grad(surrogate(penalty, leaf, ref, sampler).sum(), leaf)
    found = penalty.coefficient(ref - lp, lp - sampler)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    as_array = penalty.coefficient((ref - lp).numpy(), (lp - sampler).numpy())
    assert isinstance(as_array, np.ndarray)
    np.testing.assert_allclose(as_array, expected.numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("vocabulary", [3, 7, 50])
@pytest.mark.parametrize(
    "penalty",
    [p for p in (*LOSSES, *REWARDS) if p.level == "token" and p.returns == "token"],
    ids=str,
)
def test_in_expectation_it_is_the_gradient_in_the_logits(penalty, vocabulary):
    """sum_x mu c (e_x - pi) against autograd of E_mu[term]."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits, ref, sampler = torch.randn(3, vocabulary, generator=generator, dtype=torch.float64)
    leaf = logits.clone().requires_grad_()
    lp, ref = leaf.log_softmax(-1), (logits + 0.8 * ref).log_softmax(-1)
    mu = (logits + 0.4 * sampler).log_softmax(-1)
    (expected,) = torch.autograd.grad((mu.exp() * surrogate(penalty, lp, ref, mu)).sum(), leaf)
    lp = lp.detach()
    c = mu.exp() * penalty.coefficient(ref - lp, lp - mu)
    torch.testing.assert_close(c - lp.exp() * c.sum(), expected, rtol=1e-12, atol=1e-12)


# --- what the placements amount to --------------------------------------------------------------
Q, REF = np.array([0.6, 0.3, 0.1]), np.array([0.45, 0.3, 0.25])
OFF = np.array([0.5, 0.3, 0.2])


def against_the_truth(penalty, q=Q, ref=REF, mu=None):
    """Length over the true one, cosine, effective beta; sums over the vocabulary."""
    mu = q if mu is None else mu
    d, log_ratio = np.log(ref / q), np.log(q / mu)

    def gradient(c):
        return mu * c - q * (mu @ c)

    g = gradient(penalty.coefficient(d, log_ratio))
    true = gradient(true_coefficient(d, log_ratio))
    length = np.linalg.norm(g) / np.linalg.norm(true)
    if length < 1e-12:
        return 0.0, math.nan, 0.0
    return length, g @ true / np.linalg.norm(g) / np.linalg.norm(true), g @ true / (true @ true)


ROWS = {
    "k1 in the reward": (Penalty("k1", "reward"), 1, 1, 1),
    "k2 as loss": (Penalty("k2"), 1, 1, 1),
    "k3 as loss": (Penalty("k3"), 1.32, 0.983, 1.30),
    "k1 as loss": (Penalty("k1"), 0, math.nan, 0),
    "k3 in the reward": (Penalty("k3", "reward"), 0.38, -0.77, -0.30),
    "rho k3, differentiated": (Penalty("k3", ratio="differentiated"), 1, 1, 1),
    "rho k3, detached": (Penalty("k3", ratio="detached"), 1.32, 0.983, 1.30),
    "square as loss": (Penalty("square"), 2, 1, 2),
    "straight through": (Penalty("k3", straight_through=True), 1, 1, 1),
}


@pytest.mark.parametrize("row", ROWS)
def test_the_table_of_placements(row):
    penalty, length, cosine, beta = ROWS[row]
    found = against_the_truth(penalty)
    assert found[0] == pytest.approx(length, abs=5e-3)
    assert found[1] == pytest.approx(cosine, abs=5e-3, nan_ok=True)
    assert found[2] == pytest.approx(beta, abs=6e-3)


def test_further_numbers_of_the_table():
    far = {"q": np.array([0.9, 0.09, 0.01]), "ref": np.array([0.2, 0.3, 0.5])}
    length, cosine, beta = against_the_truth(Penalty("k3"), **far)
    assert (length, cosine, beta) == pytest.approx((2.52, 0.84, 2.13), abs=6e-3)
    assert against_the_truth(Penalty("k3"), mu=OFF)[:2] == pytest.approx((2.29, 0.935), abs=6e-3)
    assert against_the_truth(Penalty("k2"), mu=OFF)[:2] == pytest.approx((1.53, 0.970), abs=6e-3)
    assert against_the_truth(Penalty("k1"), mu=OFF)[2] == pytest.approx(-0.86, abs=6e-3)
    assert against_the_truth(Penalty("k3", "reward"), mu=OFF)[2] == pytest.approx(-0.66, abs=6e-3)
    for ratio, beta in (("differentiated", 1), ("detached", 1.30)):
        found = against_the_truth(Penalty("k3", ratio=ratio), mu=OFF)
        assert found[2] == pytest.approx(beta, abs=6e-3)


@st.composite
def softmaxes(draw):
    size = draw(st.integers(3, 12))
    logits = st.lists(st.floats(-3, 3), min_size=size, max_size=size)
    found = [np.exp(np.array(draw(logits))) for _ in range(3)]
    return [x / x.sum() for x in found]


def gradient(c, q, mu):
    return mu * c - q * (mu @ c)


@given(softmaxes())
def test_laws_of_the_gradients(given_):
    """On any vocabulary: which placements are the reverse KL's gradient, which the forward's."""
    q, ref, mu = given_
    d, log_ratio = np.log(ref / q), np.log(q / mu)

    def pull(penalty, sampler):
        return gradient(penalty.coefficient(d, np.log(q / sampler)), q, sampler)

    true, forward = gradient(-d, q, q), q - ref  # the gradient of sum ref log(ref / q)
    same = {"rtol": 1e-9, "atol": 1e-11}
    for sampler in (q, mu):
        exact = pull(Penalty("k3", ratio="differentiated"), sampler)
        np.testing.assert_allclose(exact, true, **same)
        np.testing.assert_allclose(pull(Penalty("k3", ratio="detached"), sampler), forward, **same)
        np.testing.assert_allclose(pull(Penalty("k1", ratio="detached"), sampler), 0, **same)
        in_reward = pull(Penalty("k1", "reward", ratio="detached"), sampler)
        np.testing.assert_allclose(in_reward, true, **same)
    np.testing.assert_allclose(pull(Penalty("k2"), q), true, **same)
    np.testing.assert_allclose(pull(Penalty("k3"), q), forward, **same)
    np.testing.assert_allclose(pull(Penalty("k3", "reward"), q), true - forward, **same)
    np.testing.assert_allclose(mu * true_coefficient(d, log_ratio), -q * d, rtol=1e-12, atol=1e-14)


@given(st.floats(-40, 40), st.sampled_from(sorted(VALUES)), st.floats(0.01, 20))
def test_laws_of_a_clamp(d, estimator, limit):
    """A clamp beyond the value changes nothing; one below it stops the pull, or fixes it."""
    at, f = np.array([d]), abs(float(VALUES[estimator](np.array([d]))[0]))
    free = Penalty(estimator).coefficient(at)
    clamped = Penalty(estimator, clamp=limit).coefficient(at)
    assert clamped.tolist() == (free.tolist() if f <= limit else [0.0])
    in_reward = Penalty(estimator, "reward", clamp=limit).coefficient(at)
    assert abs(in_reward[0]) == min(f, limit)
    if f > limit:
        rho = Penalty(estimator, ratio="differentiated", clamp=limit)
        found = rho.coefficient(at, np.log([3.0]))[0]
        assert abs(found) == pytest.approx(3.0 * limit, rel=1e-12)


@pytest.mark.parametrize("d", [1e-9, 5.0, 40.0, 300.0])
def test_rho_k3s_coefficient_does_not_cancel(d):
    """f - f' is the difference of two e^d, and -d."""
    found = Penalty(ratio="differentiated").coefficient(np.array([d, -d]))
    assert found.tolist() == [-d, d]
    clamped = Penalty(ratio="differentiated", clamp=50.0).coefficient(np.array([d, -d]))
    assert clamped.tolist() == [-d if math.expm1(d) - d <= 50 else 50.0, d if d <= 50 else 50.0]


def sequences(seed=3):
    """All sequences of 3 tokens over 3: logits [9, 3] of an autoregressive policy and reference."""
    generator = torch.Generator().manual_seed(seed)
    theta, ref = torch.randn(2, 13, 3, generator=generator, dtype=torch.float64)
    every = torch.tensor(list(itertools.product(range(3), repeat=3)))
    state = torch.stack(
        [torch.zeros(27).long(), 1 + every[:, 0], 4 + 3 * every[:, 0] + every[:, 1]]
    )
    return theta, theta + 0.5 * ref, every, state.T


def log_probs(theta, every, state):
    return theta.log_softmax(-1)[state].gather(-1, every[..., None]).squeeze(-1)


@pytest.mark.parametrize("returns", ["sequence", "to_go"])
def test_k1_in_a_return_is_the_gradient_of_the_sequences_kl(returns):
    """Over all 27 sequences; per-token terms in the loss, which miss the states' part, are not."""
    theta, reference, every, state = sequences()
    leaf = theta.clone().requires_grad_()
    lp, ref = log_probs(leaf, every, state), log_probs(reference, every, state)
    kl = (lp.sum(-1).exp() * (lp - ref).sum(-1)).sum()
    (expected,) = torch.autograd.grad(kl, leaf, retain_graph=True)

    def pull(penalty):
        c = penalty.coefficient((ref - lp).detach())
        weighted = lp.sum(-1).exp().detach()[:, None] * c
        return torch.autograd.grad(lp, leaf, weighted, retain_graph=True)[0]

    found = pull(Penalty("k1", "reward", returns=returns))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
    assert not torch.allclose(pull(Penalty("k2")), expected, rtol=0.05)


def test_a_leave_one_out_baseline_has_no_pull_in_expectation():
    """RLOO with two completions: over all pairs of sequences it is the sequence's KL gradient."""
    theta, reference, every, state = sequences(seed=8)
    leaf = theta.clone().requires_grad_()
    lp, ref = log_probs(leaf, every, state), log_probs(reference, every, state)
    (expected,) = torch.autograd.grad(
        (lp.sum(-1).exp() * (lp - ref).sum(-1)).sum(), leaf, retain_graph=True
    )
    pairs = torch.tensor(list(itertools.product(range(27), repeat=2))).reshape(-1)
    penalty = Penalty("k1", "reward", returns="sequence", leave_one_out=2)
    c = penalty.coefficient((ref - lp).detach()[pairs])
    mass = lp.sum(-1).exp().detach()
    weight = (mass[:, None] * mass).reshape(-1).repeat_interleave(2)[:, None] / 2
    total = torch.zeros_like(lp).index_add_(0, pairs, weight * c)
    (found,) = torch.autograd.grad(lp, leaf, total)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
    assert (c.view(-1, 2, 3).sum(1).abs() < 1e-12).all(), "two completions pull against each other"


@pytest.mark.parametrize("penalty", [*LOSSES[::7], *REWARDS[::5]], ids=str)
def test_what_the_mask_leaves_out_changes_nothing(penalty):
    lp, ref, sampler = tokens(rows=6, columns=9, seed=4)
    mask = torch.arange(9) < torch.tensor([5] * 6)[:, None]
    given_ = [ref - lp, lp - sampler]
    padded = [torch.where(mask, x, torch.nan) for x in given_]
    short = penalty.coefficient(*(x[:, :5] for x in given_))
    for kind in (mask, mask.long()):
        found = penalty.coefficient(*padded, kind)
        torch.testing.assert_close(found[:, :5], short, rtol=1e-12, atol=1e-14)
        assert (found[:, 5:] == 0).all()


@pytest.mark.parametrize(
    ("penalty", "line"),
    [
        (
            Penalty(ratio="differentiated", beta=0.04),
            "0.04 x rho*k3 in the loss, rho differentiated: the reverse KL's gradient, exact",
        ),
        (
            Penalty(ratio="differentiated", clamp=5.0),
            "1 x rho*k3 in the loss, rho differentiated, clamped at 5: the reverse KL's gradient; "
            "a clamped token pulls rho times the limit",
        ),
        (
            Penalty(clamp=10.0, beta=0.1),
            "0.1 x k3 in the loss, clamped at 10: the forward KL's gradient, on-policy; a clamped "
            "token pulls nothing",
        ),
        (
            Penalty("k1", "reward", "detached", returns="sequence", level="sequence",
                    leave_one_out=8, beta=0.05),
            "0.05 x rho(sequence)*k1 in the sequence's return, less the mean of the prompt's "
            "others: the reverse KL's gradient, in expectation over whole sequences",
        ),
    ],
)  # fmt: skip
def test_it_prints_itself_in_one_line(penalty, line):
    assert str(penalty) == line


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"estimator": "k4"}, r"estimator is 'k4': choose from 'k1', 'k2', 'k3'"),
        ({"placed": "advantage"}, "placed is 'advantage'"),
        ({"ratio": "rho"}, "ratio is 'rho'.*None, 'detached', 'differentiated'"),
        ({"clamp": 0.0}, "clamp is 0.0: give a positive limit"),
        ({"clamp_d": math.nan}, "clamp_d is nan"),
        ({"beta": math.inf}, "beta is inf"),
        ({"returns": "sequence"}, "a loss has tokens' terms"),
        ({"placed": "reward", "straight_through": True}, "no gradient flows through a reward"),
        ({"level": "sequence"}, "without a ratio"),
        ({"placed": "reward", "leave_one_out": 4}, "with returns='sequence'"),
        ({"placed": "reward", "returns": "sequence", "leave_one_out": 1}, "2 or more"),
    ],
)
def test_what_no_objective_can_be_is_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        Penalty(**fields)


def test_it_needs_no_torch():
    program = (
        "import sys, numpy, klmonitor; d = numpy.array([1.0]); "
        "assert klmonitor.penalty.true_coefficient(d) == -d; "
        "assert abs(klmonitor.Penalty().coefficient(d)[0] + 1.718281828) < 1e-9; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
