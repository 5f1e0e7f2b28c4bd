"""A term's exact gradient against automatic differentiation; the Rao-Blackwellised KL beside k1."""

import math

import numpy as np
import pytest
import torch

from klmonitor import exact_kl, pull
from klmonitor.numbers.student import interval
from klmonitor.penalty import Penalty
from klmonitor.pull import exact_pull, rao_blackwellised
from klmonitor.simulate import CLEAN_FAMILIES
from klmonitor.simulate.cases import zipf_logits
from klmonitor.simulate.samples import draw


def logits(positions, vocabulary, noise, seed):
    """A pair: some rows flat, some peaked, p = q + noise."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.2, 3.0, positions).unsqueeze(-1)
    q = scale * torch.randn(positions, vocabulary, generator=generator)
    return q, q + noise * torch.randn(positions, vocabulary, generator=generator)


TERMS = {
    "k3 in the loss": (Penalty(beta=0.1), lambda f, lp, _: (lp.detach().exp() * f).sum(-1)),
    "k1 in the loss": (Penalty("k1"), lambda f, lp, _: (lp.detach().exp() * f).sum(-1)),
    "rho k3, differentiated": (
        Penalty(ratio="differentiated"),
        lambda f, lp, mu: (mu * (lp.exp() / mu) * f).sum(-1),
    ),
    "rho k3, detached": (
        Penalty(ratio="detached"),
        lambda f, lp, mu: (mu * (lp.detach().exp() / mu) * f).sum(-1),
    ),
    "k3 in the reward": (
        Penalty(placed="reward"),
        lambda f, lp, _: (lp.exp() * f.detach()).sum(-1),
    ),
    "clamped": (
        Penalty(clamp=0.4),
        lambda f, lp, _: (lp.detach().exp() * f.clamp(max=0.4)).sum(-1),
    ),
}


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("tile", [1 << 20, 100])
def test_the_exact_pull_is_automatic_differentiations(monkeypatch, term, temperature, tile):
    """Gradients in logits / temperature of the expected term and of KL(policy || ref)."""
    monkeypatch.setattr(pull, "TILE", tile)
    penalty, expected = TERMS[term]
    policy, ref = (x.double() for x in logits(9, 40, 1.0, seed=6))
    sampler = policy + 0.3 * torch.randn(9, 40, dtype=torch.float64) if "rho" in term else policy
    leaf = (policy / temperature).requires_grad_()
    lp, lref = leaf.log_softmax(-1), (ref / temperature).log_softmax(-1)
    mu = (sampler / temperature).softmax(-1)
    d = lref - lp
    f = -d if penalty.estimator == "k1" else torch.exp(d) - 1 - d
    (g,) = torch.autograd.grad(expected(f, lp, mu).sum(), leaf, retain_graph=True)
    (true,) = torch.autograd.grad((lp.exp() * (lp - lref)).sum(), leaf)
    found = exact_pull(policy, ref, penalty, sampler=sampler, temperature=temperature)
    same = {"rtol": 1e-9, "atol": 1e-14}
    torch.testing.assert_close(found.pulled, (g * g).sum(-1), **same)
    torch.testing.assert_close(found.along, (g * true).sum(-1), **same)
    torch.testing.assert_close(found.true, (true * true).sum(-1), **same)
    cosine = torch.nn.functional.cosine_similarity(g, true, eps=1e-30)
    if penalty.estimator == "k3":
        torch.testing.assert_close(found.cosine, cosine, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.length, g.norm(dim=-1) / true.norm(dim=-1), **same)
    weight = penalty.beta * (g * true).sum() / (true * true).sum()
    torch.testing.assert_close(found.pooled().effective_beta, weight, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.kl, exact_kl(policy, ref, temperature=temperature))
    entropy = torch.distributions.Categorical(logits=policy / temperature).entropy()
    torch.testing.assert_close(found.entropy, entropy, rtol=1e-12, atol=1e-12)


def test_the_pull_of_float32_logits_and_of_excluded_tokens():
    q, p = logits(6, 5000, 0.2, seed=7)
    q[:, -3:] = p[:, -3:] = -math.inf
    found = exact_pull(q.bfloat16().float(), p.bfloat16().float(), Penalty())
    exact = exact_pull(q.bfloat16().double(), p.bfloat16().double(), Penalty())
    for name in ("kl", "entropy", "length", "cosine", "effective_beta"):
        assert getattr(found, name).dtype == torch.float32
        np.testing.assert_allclose(getattr(found, name), getattr(exact, name), rtol=2e-4)
        assert getattr(found, name).isfinite().all()


def test_a_term_of_sequences_has_no_pull_at_a_position():
    q, p = logits(2, 5, 0.5, seed=0)
    with pytest.raises(ValueError, match=r"k1 in the sequence's return: a term of sequences"):
        exact_pull(q, p, Penalty("k1", "reward", returns="sequence"))
    with pytest.raises(ValueError, match="cut padded vocabularies"):
        exact_pull(q, p, Penalty(), sampler=torch.zeros(2, 6))


COVERAGE = {
    "Gaussian noise": (0.92, 0.98),
    "temperature": (0.92, 0.98),
    "t4 noise": (0.88, 0.98),
    "uneven noise": (0.6, 0.9),  # one context in a hundred holds much of the KL
}


@pytest.mark.parametrize("family", CLEAN_FAMILIES)
def test_the_exact_kl_at_sampled_positions_is_the_better_estimate(family):
    """40 sequences of 3 positions, 300 times: less squared error and narrower than k1's, and the
    95 % interval holds the truth; the light families' at its rate, the heaviest's less often."""
    for case in CLEAN_FAMILIES[family]:
        rng = np.random.default_rng(11)
        ((_, change),) = case.parts
        given = change(rng, zipf_logits(rng, 2000, 100))
        kl = exact_kl(torch.tensor(given.q), torch.tensor(given.p)).numpy()
        x = draw(rng, given.q, 64)
        k1_of = np.take_along_axis(given.q - given.p, x, -1)
        truth, sequences = kl.mean(), torch.arange(120) // 3
        errors, widths, held = [], [], 0
        for _ in range(300):
            at = rng.integers(0, 2000, 120)
            sampled = k1_of[at, rng.integers(0, 64, 120)]
            both = [rao_blackwellised(torch.tensor(v), sequences) for v in (kl[at], sampled)]
            errors.append([(mean - truth) ** 2 for mean, _ in both])
            widths.append([se for _, se in both])
            low, high = interval(*both[0], 40)
            held += low <= truth <= high
        assert np.mean(errors, 0)[0] < np.mean(errors, 0)[1], case.name
        assert np.mean(widths, 0)[0] < np.mean(widths, 0)[1], case.name
        low, high = COVERAGE[family]
        assert low <= held / 300 <= high, case.name


def test_the_error_of_the_mean_is_the_clusters():
    kl = torch.tensor([0.1, 0.3, 0.2, 0.6, 0.4])
    mean, se = rao_blackwellised(kl, torch.tensor([7, 7, 2, 2, 5]))
    sums, sizes = np.array([0.4, 0.8, 0.4]), np.array([2, 2, 1])
    assert mean == pytest.approx(0.32, rel=1e-6)
    assert se == pytest.approx(math.sqrt(3 / 2 * np.sum((sums - 0.32 * sizes) ** 2)) / 5, rel=1e-5)
    assert math.isnan(rao_blackwellised(kl, torch.zeros(5).long())[1])
