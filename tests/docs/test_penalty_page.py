"""The numbers of docs/penalty.md, computed again; and that the tests it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from klmonitor import Monitor, Penalty
from klmonitor.pull import exact_pull
from klmonitor.simulate.cases import noise, t4_noise, temperature, zipf_logits
from klmonitor.simulate.samples import draw

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "penalty.md").read_text(encoding="utf-8")
Q, REF, OFF = np.array([0.6, 0.3, 0.1]), np.array([0.45, 0.3, 0.25]), np.array([0.5, 0.3, 0.2])
D = np.log(REF / Q)


def cells(start):
    """The cells of the table's row that begins so."""
    line = next(line for line in TEXT.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.replace(r"\|", "!").split("|")[1:-1]]


def compared(c, mu, rho, d=D, q=Q):
    """Length, cosine and beta of sum mu c (e_x - q), against c = -rho d."""

    def gradient(c):
        return mu * c - q * (mu @ c)

    g, true = gradient(c), gradient(-rho * d)
    norm = np.linalg.norm(true)
    return [np.linalg.norm(g) / norm, g @ true / norm / np.linalg.norm(g), g @ true / norm**2]


E = np.exp(D)
ROWS = {  # written out from the table's second column
    "k1 in the reward, with": lambda rho: -rho * D,
    "k2 in the loss": lambda rho: -D,
    "k3 in the loss": lambda rho: 1 - E,
    r"\|d\| in the loss": lambda rho: -np.sign(D),
    "d² in the loss": lambda rho: -2 * D,
    "k2 in the reward": lambda rho: D**2 / 2,
    "k3 in the reward": lambda rho: E - 1 - D,
    "rho·k3, rho with": lambda rho: -rho * D,
    "rho·k3, rho a number": lambda rho: rho * (1 - E),
    "k3 straight through": lambda rho: -D,
}


@pytest.mark.parametrize("start", ROWS)
def test_the_rows_of_the_table(start):
    length, cosine, beta, off = map(float, cells(start)[2:6])
    one = np.ones(3)
    assert [length, cosine, beta] == pytest.approx(compared(ROWS[start](one), Q, one), abs=6e-4)
    rho = Q / OFF
    assert off == pytest.approx(compared(ROWS[start](rho), OFF, rho)[2], abs=6e-4)


def test_the_row_of_nothing():
    found = cells("k1 in the loss")
    assert (float(found[2]), float(found[4]), found[3]) == (0.0, 0.0, "")
    assert Q @ np.ones(3) * Q == pytest.approx(Q), "mu c - q (mu @ c) is 0"
    assert float(found[5]) == pytest.approx(compared(np.ones(3), OFF, Q / OFF)[2], abs=6e-4)


def test_the_clamped_example():
    q, ref = np.array([0.9, 0.09, 0.01]), np.array([0.2, 0.3, 0.5])
    d = np.log(ref / q)
    free, one = 1 - np.exp(d), np.ones(3)
    dead = np.where(np.expm1(d) - d > 10, 0, free)
    betas = [compared(c, q, one, d, q)[2] for c in (free, dead)]
    assert f"effective beta of {betas[0]:.2f}, and\nof {betas[1]:.2f} where" in TEXT
    assert np.count_nonzero(dead == 0) == 1


def test_the_line_that_it_begins_with():
    rng = np.random.default_rng(0)
    given = noise(1.0)(rng, zipf_logits(rng, 64, 2000))
    report = reported(rng, given, Penalty(clamp=10.0, beta=0.04))
    line = next(line for line in report.explain().splitlines() if "KL term" in line)
    assert line.strip() in " ".join(TEXT.split())


def reported(rng, given, penalty):
    """The report of a step of 64 tokens of each context."""
    x = draw(rng, given.q, 64)
    monitor = Monitor(penalty=penalty, strict=True)
    monitor.observe(
        policy=np.take_along_axis(given.q, x, -1), ref=np.take_along_axis(given.p, x, -1)
    )
    return monitor.step(0)


SPACES = {
    "noise .1": noise(0.1),
    "noise .5": noise(0.5),
    "noise 1 ": noise(1.0),
    "noise 1.5": noise(1.5),
    "temperature .8": temperature(0.8),
    "temperature 1.3": temperature(1.3),
    "temperature 2": temperature(2.0),
    "t4 noise .5": t4_noise(0.5),
}


@pytest.mark.parametrize("start", SPACES)
def test_the_two_spaces(start):
    rng = np.random.default_rng(0)
    given = SPACES[start](rng, zipf_logits(rng, 200, 20_000))
    report = reported(rng, given, Penalty("k3"))
    _, tokens, exact, flagged = cells(start)
    found = report.pairs["policy_ref"]["penalty/effective_beta"]
    assert float(tokens) == pytest.approx(found, abs=6e-3)
    truth = exact_pull(torch.tensor(given.q), torch.tensor(given.p), Penalty("k3")).pooled()
    assert float(exact) == pytest.approx(float(truth.effective_beta), abs=6e-3)
    assert bool(flagged) == ("tails too heavy" in report.explain())


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(tests/[\w/]+\.py::\w+)`", TEXT))))
def test_the_tests_that_it_names_exist(name):
    path, function = name.split("::")
    assert f"\ndef {function}(" in (ROOT / path).read_text(encoding="utf-8")


def test_the_terms_that_it_writes_are_terms():
    """The code of the trainers' table, with a number for what an option holds."""
    terms = re.findall(r"`(Penalty\([^`]+\))`", TEXT)
    assert len(terms) >= 8
    for term in terms:
        code = re.sub(r"=G\b", "=8", term.replace("(kl_estimator", '("k1"'))
        assert isinstance(eval(code, {"Penalty": Penalty}), Penalty)
