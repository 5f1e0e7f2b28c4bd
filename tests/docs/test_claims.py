"""What people repeat about the estimators (docs/estimators.md), row by row, against closed forms.

`docs/tables.py --check` (tests/test_house.py) computes the page's numbers anew and compares; here
each row's numbers are found another way, and its verdict is drawn from them.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats

from klmonitor.cli import make_parser
from klmonitor.simulate.claims import (
    CLAIMS,
    THREE,
    crossing,
    few_negative_and_noisy,
    gradients,
    half_negative_and_quiet,
    negative_means,
    noise_of_k1,
)
from klmonitor.simulate.study import ESTIMATORS, moments
from klmonitor.simulate.worlds import gaussian, make_pool

PAGE = (Path(__file__).parents[2] / "docs" / "estimators.md").read_text(encoding="utf-8")


def numbers(start):
    """The numbers of a row of the page, in their order; per cent as shares."""
    line = next(line for line in PAGE.splitlines() if line.startswith(f"| {start}"))
    cell = line.replace(r"\|", "!").split("|")[3]
    found = re.findall(r"(?<![\w.])([-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:e[-+]?\d+)?)(%?)", cell)
    return [float(n.replace(",", "")) / (100 if percent else 1) for n, percent in found]


def holds(value, wanted, digits=2):
    return value == pytest.approx(wanted, rel=0.5 * 10 ** (1 - digits))


def test_every_claim_is_on_the_page():
    for claim in CLAIMS:
        row = f"| {claim.said} | {claim.verdict} |"
        assert row in PAGE
        assert claim.verdict.split()[0].strip(":;,") in ("holds", "fails", "the")


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.command)
def test_every_command_can_be_run(claim):
    if claim.command.startswith("simulate"):
        assert make_parser().parse_args(claim.command.split()).run
    else:
        name = claim.command.removeprefix("see ")
        assert (Path(__file__).parents[2] / name).exists()


def test_k1_is_unbiased_and_noisy_where_policies_are_near():
    """sd of -d between Gaussians is mu; that of k3 has the closed form of Schulman's table."""
    near, _, far, _, k3 = numbers("k1 is unbiased")
    assert holds(near, 2 / 0.1)
    assert holds(far, 2 / 3)
    assert holds(k3, float(mpmath.sqrt(mpmath.e**9 - 1 - 9) / 4.5))
    assert near > 10 > far
    for mu in (0.1, 3.0):
        assert moments(gaussian(mu**2 / 2), ESTIMATORS["k1"])[0] == pytest.approx(mu**2 / 2)


def test_negative_values_do_not_make_the_noise():
    gauss, quiet, noisy = (
        noise_of_k1(pool)
        for pool in (gaussian(0.005), half_negative_and_quiet(), few_negative_and_noisy())
    )
    for found in (gauss, quiet, noisy):
        assert found.relative == pytest.approx(found.spread * found.cancellation, rel=1e-12)
    mu = 0.1
    folded = stats.foldnorm(c=mu / 2, scale=mu).mean()  # |k1|, k1 ~ N(mu^2 / 2, mu^2)
    assert gauss.spread == pytest.approx(mu / folded, rel=1e-6)
    assert gauss.cancellation == pytest.approx(folded / 0.005, rel=1e-6)
    assert gauss.negative == pytest.approx(stats.norm.cdf(-mu / 2), abs=1e-4)
    a, b = math.log(1.99), -math.log(0.01)
    assert quiet.negative == 0.5
    assert quiet.relative == pytest.approx(((a + b) / 2) / ((b - a) / 2))
    assert quiet.relative < 2 < 10 < noisy.relative
    assert noisy.negative < 0.05
    assert noisy.spread > 10 * gauss.spread, "one token in a thousand carries it"
    for pool in (half_negative_and_quiet(), few_negative_and_noisy()):
        assert pool.mean(np.exp(pool.d)) == pytest.approx(1, abs=1e-12), "p is a distribution"
        assert pool.weight.sum() == pytest.approx(1)
    row = numbers("k1 is noisy")
    for four, found in zip((row[1:5], row[5:9], row[9:13]), (gauss, quiet, noisy), strict=True):
        assert holds(four[0], found.relative)
        assert holds(four[1], found.spread)
        assert holds(four[2], found.cancellation)
        assert four[3] == pytest.approx(found.negative, abs=0.005)


def test_either_factor_alone_makes_the_noise():
    """Extremes without cancellation, and cancellation without extremes."""
    one_sided = np.array([0.0, 10.0])  # k1 of 0 or 10, 1 in 1,000: no sign but one
    weight = np.array([0.999, 0.001])
    mean, sd = weight @ one_sided, math.sqrt(weight @ one_sided**2 - (weight @ one_sided) ** 2)
    assert sd / mean > 30
    assert mean == weight @ np.abs(one_sided), "nothing cancels"
    flat = np.array([-0.11, 0.1 + 0.02])  # two sizes alike, opposite signs
    assert flat.std() / flat.mean() > 20
    assert flat.std() / np.abs(flat).mean() == pytest.approx(1, rel=0.01)


def test_k2_has_a_bias_that_grows():
    row = numbers("k2 has a low")
    assert [row[0], row[2], row[4]] == pytest.approx([0.1**2 / 4, 1 / 4, 9 / 4], rel=0.01)
    for mu in (0.1, 1.0, 3.0):
        d_squared = integrate.quad(
            lambda x, mu=mu: stats.norm.pdf(x) * (mu * x - mu**2 / 2) ** 2 / 2, -12, 12
        )[0]
        assert d_squared / (mu**2 / 2) - 1 == pytest.approx(mu**2 / 4, rel=1e-6)
    assert row[-3] > 0.3, "p sharper"
    assert row[-1] < -0.3, "q collapsed"


def test_the_control_variate_has_mean_0_and_goes_against_k1():
    row = numbers("r - 1 has expectation")
    for mu, found in zip((0.1, 1.0, 3.0), (row[1], row[3], row[5]), strict=True):
        assert holds(found, -mu / math.sqrt(math.expm1(mu**2)))
    for case in ("zipf", "heavy-p", "collapse", "temperature"):
        pool = make_pool(case, 0.01)
        assert pool.mean(np.expm1(pool.d)) == pytest.approx(0, abs=1e-9)
    assert abs(make_pool("top-p", 0.01).mean(np.expm1(make_pool("top-p", 0.01).d))) > 1e-3


def test_lambda_is_1_for_near_policies_alone():
    row = numbers("lambda = 1")
    for mu, found in zip((0.1, 1.0, 3.0), (row[0], row[2], row[4]), strict=True):

        def variance(weight, mu=mu):  # of -d + weight (e^d - 1), d ~ N(-mu^2 / 2, mu^2)
            return mu**2 - 2 * weight * mu**2 + weight**2 * math.expm1(mu**2)

        assert holds(found, optimize.minimize_scalar(variance).x)
    assert row[-2] < 1 < row[-1]
    d = np.linspace(-5, 5, 101)
    np.testing.assert_allclose(-d + 1 * np.expm1(d), ESTIMATORS["k3"](d), atol=1e-12)


def test_k3_is_never_negative_and_loses_where_it_is_said_to():
    root = optimize.brentq(lambda x: math.exp(x) - 1 - 2 * x, 1, 2) / 2
    assert crossing() == pytest.approx(root, rel=1e-9)
    assert f"{root:.3f}" == "0.628"
    for kl in (0.9 * root, 1.1 * root):
        k1, k3 = (moments(gaussian(kl), ESTIMATORS[name])[1] for name in ("k1", "k3"))
        assert (k3 > k1) == (kl > root)
    for d in (-50.0, -1e-3, 0.0, 1e-3, 5.0):
        assert mpmath.expm1(d) - d >= 0
    assert numbers("k3 is never")[:2] == [0, 0.628]
    assert "the median batch reads 0.4 KL (k1: 1.0)" in PAGE


def test_the_reward_and_the_loss_have_gradients_of_different_kls():
    """By autograd: of the KLs themselves, and of the estimators averaged over tokens of q."""
    q, p = (torch.tensor(x, dtype=torch.float64) for x in THREE)
    logits = q.log().clone().requires_grad_()

    def gradient(loss):
        return torch.autograd.grad(loss(torch.log_softmax(logits, -1)), logits)[0].numpy()

    reverse = gradient(lambda lq: (lq.exp() * (lq - p.log())).sum())
    forward = gradient(lambda lq: (p * (p.log() - lq)).sum())
    k1_reward = gradient(lambda lq: (q * (q.log() - p.log()) * lq).sum())
    k1_loss = gradient(lambda lq: (q * (lq - p.log())).sum())
    k3_loss = gradient(lambda lq: (q * (torch.exp(p.log() - lq) - 1 - (p.log() - lq))).sum())
    found = gradients(*THREE)
    np.testing.assert_allclose(found["kl"], reverse, atol=1e-14)
    np.testing.assert_allclose(found["k1 in the reward"], k1_reward, atol=1e-14)
    np.testing.assert_allclose(k1_reward, reverse, atol=1e-14)
    np.testing.assert_allclose(found["k3 in the loss"], k3_loss, atol=1e-14)
    np.testing.assert_allclose(k3_loss, forward, atol=1e-14)
    np.testing.assert_allclose(found["k1 in the loss"], k1_loss, atol=1e-14)
    np.testing.assert_allclose(k1_loss, 0, atol=1e-14)
    assert np.abs(k3_loss - k1_reward).max() > 0.02
    assert "(+0.124, -0.024, -0.100)" in PAGE
    assert "(+0.150, +0.000, -0.150)" in PAGE


def test_small_batches_and_far_policies_make_k1_jump():
    assert negative_means(0.01, 64) == pytest.approx(
        stats.norm.cdf(0, loc=0.01, scale=math.sqrt(0.02 / 64)), rel=1e-9
    )
    row = numbers("with small batches")
    assert row[1] == pytest.approx(negative_means(0.01, 64), abs=0.005)
    assert negative_means(0.01, 4096) < 1e-5
    sds = {kl: math.sqrt(2 * kl / 16) for kl in (0.5, 0.005)}
    assert f"{sds[0.5]:.2f}" == "0.25"
    assert f"off by {sds[0.5]:.2f} nats (one sd), at .005 by {sds[0.005]:.3f}" in PAGE
