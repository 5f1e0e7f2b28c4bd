"""k1, k2, k3 against 60-digit arithmetic, and their direction against exact sums."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from klmonitor import k1, k2, k3

mpmath.mp.dps = 60


def exact_k3(d: float) -> mpmath.mpf:
    return mpmath.expm1(mpmath.mpf(d)) - mpmath.mpf(d)


def grid(low: float, high: float, n: int = 3000) -> np.ndarray:
    magnitude = np.exp(np.linspace(np.log(low), np.log(high), n))
    return np.concatenate([-magnitude, magnitude])


@pytest.mark.parametrize(
    ("dtype", "low", "high", "tolerance"),
    [(torch.float64, 1e-8, 30.0, 1e-12), (torch.float32, 1e-18, 88.0, 1e-6)],
)
def test_k3_is_accurate_over_the_whole_range(dtype, low, high, tolerance):
    d = torch.tensor(grid(low, high), dtype=dtype)
    worst = max(
        abs((mpmath.mpf(value) - exact_k3(x)) / exact_k3(x))
        for x, value in zip(d.tolist(), k3(d).tolist(), strict=True)
    )
    assert worst <= tolerance


@given(st.floats(-1e-3, 1e-3, allow_nan=False))
def test_k3_is_never_negative_and_close_to_k2_for_small_d(d):
    x = torch.tensor(d, dtype=torch.float64)
    assert k3(x) >= 0
    assert abs(k3(x) - k2(x)) <= abs(d) ** 3 / 6 * 1.01 + 4e-16 * k2(x)


def test_half_precisions_are_upcast_and_integers_refused():
    d = torch.tensor([-1.0, 0.5], dtype=torch.bfloat16)
    assert k3(d).dtype == k1(d).dtype == k2(d).dtype == torch.float32
    with pytest.raises(TypeError, match=r"int64.*log p - log q"):
        k1(torch.tensor([1, 2]))


def test_nothing_is_clamped():
    assert torch.isinf(k3(torch.tensor([89.0])))
    assert k1(torch.tensor([-1000.0])).item() == 1000.0
    assert torch.isnan(k3(torch.tensor([float("nan")])))


@pytest.mark.parametrize("seed", range(5))
def test_the_direction_is_kl_of_q_to_p(seed):
    """Exact expectations over a vocabulary of 50, with x ~ q and d = log p - log q."""
    generator = np.random.default_rng(seed)
    q, p = generator.dirichlet(np.full(50, 0.4), size=2) + 1e-9
    q, p = q / q.sum(), p / p.sum()
    d = np.log(p) - np.log(q)
    kl_q_p = float(np.sum(q * (np.log(q) - np.log(p))))
    kl_p_q = float(np.sum(p * (np.log(p) - np.log(q))))

    def expect(estimator):
        return float((torch.tensor(q) * estimator(torch.tensor(d))).sum())

    assert expect(k1) == pytest.approx(kl_q_p, abs=1e-12, rel=1e-12)
    assert expect(k3) == pytest.approx(kl_q_p, abs=1e-12, rel=1e-12)
    assert expect(k2) == pytest.approx(float(np.sum(q * d * d / 2)), rel=1e-12)
    assert abs(kl_p_q - kl_q_p) > 0.05, "the two directions must differ for this test to tell"


@pytest.mark.parametrize("mu", [0.1, 1.0])
def test_gaussian_closed_forms(mu):
    """q = N(0, 1), p = N(mu, 1), KL = mu^2/2: means and variances within 4 standard errors."""
    n = 1_000_000
    x = torch.from_numpy(np.random.default_rng(7).standard_normal(n))
    d = mu * x - mu * mu / 2
    kl = mu * mu / 2
    truth = {
        k1: (kl, mu),
        k2: (kl * (1 + mu * mu / 4), kl * np.sqrt(2 + mu * mu)),
        k3: (kl, np.sqrt(np.exp(mu * mu) - 1 - mu * mu)),
    }
    for estimator, (mean, sd) in truth.items():
        values = estimator(d)
        assert abs(values.mean().item() - mean) <= 4 * sd / np.sqrt(n)
        fourth = ((values - values.mean()) ** 4).mean().item()
        error_of_variance = np.sqrt((fourth - sd**4) / n)
        assert abs(values.var().item() - sd**2) <= 4 * error_of_variance


def test_infinite_log_ratios_have_their_limits():
    d = torch.tensor([torch.inf, -torch.inf, torch.nan], dtype=torch.float64)
    assert k3(d)[:2].tolist() == [torch.inf, torch.inf]
    assert k3(d)[2].isnan()
