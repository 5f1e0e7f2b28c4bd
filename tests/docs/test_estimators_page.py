"""The numbers of docs/estimators.md, computed again from the definitions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "estimators.md"
TEXT = PAGE.read_text(encoding="utf-8")

Q, P = np.array([0.6, 0.3, 0.1]), np.array([0.45, 0.3, 0.25])
D = np.log(P / Q)


def k1(d):
    return -d


def k2(d):
    return d * d / 2


def k3(d):
    return np.exp(d) - 1 - d


def row(start: str) -> list[float]:
    """The k1, k2, k3 and gap of the table's row that begins so; nan where it is empty."""
    line = next(line for line in TEXT.splitlines() if line.startswith(f"| {start}"))
    cells = line.replace(r"\|", "!").split("|")[2:6]
    return [float(cell) if cell.strip() else math.nan for cell in cells]


def sd(x):
    return math.sqrt(Q @ x**2 - (Q @ x) ** 2)


def expectations(sampler, d):
    means = [float(sampler @ k(d)) for k in (k1, k2, k3)]
    return [*means, means[2] - means[0]]


@pytest.mark.parametrize(
    ("start", "sampler", "d"),
    [
        ("x from q, d = log p", Q, D),
        ("d turned round", Q, -D),
        ("sampler turned round", P, D),
        ("both turned round", P, -D),
    ],
)
def test_the_rows_of_turned_signs(start, sampler, d):
    assert row(start) == pytest.approx(expectations(sampler, d), abs=5.1e-5)


def test_what_the_rows_say_they_estimate():
    forward, reverse = float(Q @ -D), float(P @ D)
    chi2_forward, chi2_reverse = float(Q**2 @ (1 / P)) - 1, float(P**2 @ (1 / Q)) - 1
    assert row("x from q")[:3:2] == pytest.approx([forward, forward], abs=5.1e-5)
    assert row("d turned")[:3:2] == pytest.approx([-forward, chi2_forward - forward], abs=5.1e-5)
    assert row("sampler turned")[:3:2] == pytest.approx(
        [-reverse, chi2_reverse - reverse], abs=5.1e-5
    )
    assert row("both turned")[:3:2] == pytest.approx([reverse, reverse], abs=5.1e-5)
    for value in (forward, reverse):
        assert f"= {value:.4f}".replace("0.", ".") in TEXT


def test_the_other_rows():
    assert row("sign inside k3")[2] == pytest.approx(Q @ (np.expm1(D) + D), abs=5.1e-5)
    assert sd(np.expm1(D) + D) == pytest.approx(sd(2 * D), rel=0.25), "the noise of 2 k1"
    assert row("k2 without the half")[1] == pytest.approx(Q @ D**2, abs=5.1e-5)
    assert row("mean of")[0] == pytest.approx(Q @ np.abs(D), abs=5.1e-5)
    padded = [0.6 * value for value in expectations(Q, D)]
    assert row("mean over padding too") == pytest.approx(padded, abs=5.1e-5)


def test_float32_of_the_naive_k3():
    """`exp(d) - d - 1` is off by 2 % at .01 and has no correct digit below 3e-4."""

    def worst(d):
        d = np.linspace(d, 1.1 * d, 200, dtype=np.float32)
        naive = np.exp(d) - d - np.float32(1)
        exact = k2(d.astype(float)) * (1 + d / 3 + d**2 / 12)
        return np.abs(naive / exact - 1).max()

    assert 1e-3 < worst(0.01) < 0.03
    assert worst(3e-4) > 0.5
