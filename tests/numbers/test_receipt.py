"""The receipt of a KL term: against every token's coefficient, and against the exact gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from klmonitor import Monitor, Penalty
from klmonitor.numbers.receipt import receipt
from klmonitor.numbers.sums import KEY
from klmonitor.pairs import default_pairs
from klmonitor.pull import exact_pull
from klmonitor.record import read_run
from klmonitor.simulate import CLEAN_FAMILIES, Case
from klmonitor.simulate.cases import noise, temperature, zipf_logits
from klmonitor.simulate.samples import draw
from klmonitor.summary.batch import build
from klmonitor.summary.extremes import Place
from klmonitor.summary.fields import SummaryConfig
from klmonitor.summary.passes import accumulate
from klmonitor.summary.state import Summary
from tests.helpers.steps import step_of


def sums_of(d, **others):
    """The sums of the pair policy_ref, from its d [B, T]."""
    q = np.full_like(d, -20.0)
    log_probs = {"policy": torch.tensor(q), "ref": torch.tensor(q + d), **others}
    batch = build(log_probs)
    state = Summary.empty(SummaryConfig())
    accumulate(state, batch, default_pairs(batch.log_probs), place=Place())
    return step_of(state)["policy_ref"]


def plain(penalty, d):
    """Every value from every token's own c; rows are the clusters."""
    c, t = penalty.coefficient(d), -d
    off = t - t.mean()
    slope = np.sum((c - c.mean()) * off) / np.sum(off**2)
    influence = (c - c.mean() - slope * off) * off
    basis = np.stack([np.ones(d.size), t.ravel(), (np.expm1(d) - d).ravel()], axis=1)
    fit = (basis @ np.linalg.lstsq(basis, influence.ravel(), rcond=None)[0]).reshape(d.shape)
    rows = len(d)
    square = rows / (rows - 1) * np.sum(fit.sum(1) ** 2) + np.sum((influence - fit) ** 2)
    size = np.sort(np.abs(c).ravel())[::-1]
    m = int(np.clip(d.size // 400, 1, 10))
    return {
        "penalty/beta": penalty.beta,
        "penalty/pull": penalty.beta * c.mean(),
        "penalty/top_share": size[:m].sum() / size.sum(),
        "penalty/top_d": d.flat[np.argmax(np.abs(c))],
        "penalty/dead_share": np.mean((c == 0) & (t != 0)),
        "penalty/dead_pull": np.abs(t[c == 0]).sum() / np.abs(t).sum(),
        "penalty/opposite_share": np.mean(c * t < 0),
        "penalty/effective_beta": penalty.beta * slope,
        "penalty/effective_beta_se": abs(penalty.beta) * np.sqrt(square) / np.sum(off**2),
    }


def straying(scale, rows=40, columns=100, seed=0):
    rng = np.random.default_rng(seed)
    return scale * (rng.standard_t(4, (rows, columns)) + 0.3 * rng.normal(size=(rows, 1)))


TERMS = [
    *(Penalty(k, beta=0.3) for k in ("k1", "k2", "k3", "abs", "square")),
    *(Penalty(k, "reward") for k in ("k1", "k2", "k3", "abs", "square")),
    *(Penalty(k, ratio="differentiated") for k in ("k1", "k2", "k3", "abs", "square")),
    Penalty("k3", ratio="detached"),
    Penalty("k3", straight_through=True),
    Penalty("k3", clamp=1.0),
    Penalty("k2", clamp_d=0.5),
    Penalty("k3", "reward", clamp=0.1),
    Penalty("k1", clamp=0.25, straight_through=True),
]


COMBINED = {"k1", "k3"}
"""Whose products with d are summed as well, under any placement; k2's as a loss alone."""


@pytest.mark.parametrize("penalty", TERMS, ids=str)
@pytest.mark.parametrize("scale", [0.01, 0.3, 1.0])
def test_every_value_equals_that_of_the_tokens(penalty, scale):
    """Exactly, where c is a combination of what is summed; else to 2 % and the tokens that share
    a bucket with a clamp's limit."""
    d = straying(scale)
    found, expected = receipt(penalty, sums_of(d)), plain(penalty, d)
    clamped = (penalty.clamp or penalty.clamp_d) and not penalty.straight_through
    summed = penalty.estimator in COMBINED and not clamped
    assert set(found) == set(expected)
    size = penalty.beta * np.abs(penalty.coefficient(d)).mean()
    floors = {"penalty/pull": 0.01 * size, "penalty/effective_beta": 0.01 * size / abs(d).mean()}
    most = np.abs(penalty.coefficient(d)).max()  # many tokens may share it, and any be named
    assert abs(penalty.coefficient(np.array(found.pop("penalty/top_d")))) >= 0.98 * most
    del expected["penalty/top_d"]
    for name, want in expected.items():
        if summed and name in ("penalty/pull", "penalty/effective_beta"):
            near, floor = 1e-9, 1e-12
        else:
            near, floor = 0.02, floors.get(name, 0.003 if name.endswith("share") else 2e-3)
        assert found[name] == pytest.approx(want, rel=near, abs=floor), name


@pytest.mark.parametrize("beyond", [0, 1, 5, 16, 60])
def test_the_dead_are_counted_exactly_where_they_are_listed(beyond):
    """Sixteen tokens a tail are known exactly; more lie in buckets, whose edges may cut a limit."""
    d = straying(0.05)
    d.flat[:beyond] = 4.0
    d.flat[100 : 100 + beyond] = -12.0
    found = receipt(Penalty("k3", clamp=10.0), sums_of(d))
    assert found["penalty/dead_share"] == 2 * beyond / d.size
    free = receipt(Penalty("k3"), sums_of(d))
    assert free["penalty/dead_share"] == 0


def test_one_token_may_carry_the_pull():
    d = straying(0.05, rows=3)
    d[1, 7] = 6.0
    c = np.abs(np.expm1(d))
    found = receipt(Penalty("k3"), sums_of(d))
    assert found["penalty/top_share"] == pytest.approx(c.max() / c.sum(), rel=5e-3)
    assert found["penalty/top_share"] > 0.9
    assert receipt(Penalty("k2"), sums_of(d))["penalty/top_share"] < 0.5


SHARES = {"penalty/dead_share", "penalty/dead_pull", "penalty/opposite_share"}
C_IS_KNOWN = {"penalty/pull", "penalty/top_share", "penalty/top_d"}
WEIGHT = {"penalty/effective_beta", "penalty/effective_beta_se"}


@pytest.mark.parametrize(
    ("penalty", "told"),
    [
        (Penalty("k3"), SHARES | C_IS_KNOWN),
        (Penalty("k2"), SHARES | C_IS_KNOWN),  # -d, but the tokens are not the policy's
        (Penalty("k3", ratio="detached"), SHARES),
        (Penalty("k3", ratio="differentiated"), SHARES | WEIGHT),
        (Penalty("k3", ratio="differentiated", clamp=1.0), SHARES),
        (Penalty("k2", ratio="detached"), SHARES | WEIGHT),
        (Penalty("k1", "reward", returns="sequence"), set()),
        (Penalty("k3", ratio="differentiated", level="geometric"), set()),
    ],
    ids=lambda one: str(one) if isinstance(one, Penalty) else "",
)
def test_what_is_told_of_another_samplers_tokens(penalty, told):
    """What each d decides, and a weight that no ratio changes: of rho k3, exactly beta."""
    d = straying(0.3)
    step = sums_of(d, old=torch.full(d.shape, -19.5))
    found = receipt(penalty, step)
    known = {name for name, value in found.items() if not math.isnan(value)}
    assert known == told | {"penalty/beta"}
    c = penalty.coefficient(d)
    if told >= SHARES:
        assert found["penalty/opposite_share"] == pytest.approx(np.mean(c * d > 0), abs=1e-3)
    if told >= WEIGHT:
        assert (found["penalty/effective_beta"], found["penalty/effective_beta_se"]) == (1.0, 0.0)
    if told >= C_IS_KNOWN:
        assert found["penalty/pull"] == pytest.approx(c.mean(), rel=1e-9)


def test_a_worker_that_left_something_out_makes_nothing_up():
    """Of a part without its tokens the buckets are left; without its histogram, beta alone."""
    d, penalty = straying(0.3), Penalty("k3", clamp=2.0)
    step, expected = sums_of(d), plain(penalty, d)
    step.tokens[:, 0, KEY] = np.nan
    found = receipt(penalty, step)
    for name, want in expected.items():
        assert found[name] == pytest.approx(want, rel=0.05, abs=2e-3), name
    step.histogram[:] = np.nan
    assert receipt(penalty, step) == {"penalty/beta": 1.0}


# --- beside the exact gradient ------------------------------------------------------------------
EXACT = {
    "k2 in the loss": Penalty("k2"),
    "k1 in the loss": Penalty("k1"),
    "rho k3, differentiated": Penalty(ratio="differentiated"),
}
LIGHT = [case for family in ("Gaussian noise", "temperature") for case in CLEAN_FAMILIES[family]]


def both(penalty, case, *, contexts=400, vocabulary=200, tokens=64, seed=0):
    """Token-space and exact effective beta of a case: contexts as sequences, tokens drawn."""
    rng = np.random.default_rng(seed)
    ((_, change),) = case.parts
    given = change(rng, zipf_logits(rng, contexts, vocabulary))
    x = draw(rng, given.q, tokens)
    step = sums_of(np.take_along_axis(given.p - given.q, x, -1))
    exact = exact_pull(torch.tensor(given.q), torch.tensor(given.p), penalty).pooled()
    return receipt(penalty, step), float(exact.effective_beta)


@pytest.mark.parametrize("case", LIGHT, ids=lambda case: case.name)
@pytest.mark.parametrize("term", EXACT)
def test_where_the_term_is_a_kls_gradient_both_say_so(term, case):
    """k1 in the loss on-policy reads 0 within its error, the reverse KL's reads beta."""
    found, exact = both(EXACT[term], case)
    weight, error = found["penalty/effective_beta"], found["penalty/effective_beta_se"]
    assert exact == pytest.approx(0.0 if "k1" in term else 1.0, abs=1e-9)
    assert abs(weight - exact) <= 3 * error + 1e-9


@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("placed", ["loss", "reward"])
def test_k3s_effective_beta_is_near_the_exact_one_for_light_noise(placed, scale):
    case = Case("noise", ((1.0, noise(scale)),))
    found, exact = both(Penalty("k3", placed), case)
    assert found["penalty/effective_beta"] == pytest.approx(exact, abs=0.2)


FAILS = " with tails too heavy for this to be the gradient's"


def test_it_fails_at_another_temperature_and_the_run_is_told():
    """At temperature 2 the space of tokens reads 2, the gradient 1.2: docs/penalty.md."""
    rng = np.random.default_rng(0)
    given = temperature(2.0)(rng, zipf_logits(rng, 200, 20_000))
    d = np.take_along_axis(given.p - given.q, draw(rng, given.q, 64), -1)
    report = run_of(None, Penalty("k3"), d, steps=1)
    exact = exact_pull(torch.tensor(given.q), torch.tensor(given.p), Penalty("k3")).pooled()
    found = report.pairs["policy_ref"]["penalty/effective_beta"]
    assert found > 1.4 * float(exact.effective_beta)
    assert FAILS in report.explain()
    assert FAILS not in run_of(None, Penalty("k2"), d, steps=1).explain()
    assert FAILS not in run_of(None, Penalty("k3"), straying(0.1), steps=1).explain()


def unequal_rows(rng, scale):
    mu = scale * np.sqrt(rng.gamma(1.25, 0.8, (48, 1)))
    return mu * rng.normal(size=(48, 60)) - mu**2 / 2


def shifted_rows(rng, scale):
    return scale * (rng.normal(size=(48, 60)) + 0.5 * rng.normal(size=(48, 1)))


@pytest.mark.parametrize("rows", [unequal_rows, shifted_rows])
@pytest.mark.parametrize(
    "penalty", [Penalty("k3"), Penalty("k3", "reward"), Penalty("k2", clamp_d=0.5)]
)
@pytest.mark.parametrize("scale", [0.2, 0.4])
def test_the_error_is_the_spread_of_what_steps_read(rows, penalty, scale):
    """200 steps of 48 clustered rows: the deviation over the error is about a normal deviate."""
    rng = np.random.default_rng(2)
    found = [receipt(penalty, sums_of(rows(rng, scale))) for _ in range(200)]
    slopes, errors = (
        np.array([one[f"penalty/effective_beta{what}"] for one in found]) for what in ("", "_se")
    )
    z = (slopes - slopes.mean()) / errors
    assert 0.7 < z.std() < 1.3


# --- in a run -----------------------------------------------------------------------------------
def run_of(path, penalty, d, steps=2):
    monitor = Monitor(path, penalty=penalty, strict=True)
    q = np.full_like(d, -20.0)
    for step in range(steps):
        monitor.observe(policy=q, ref=q + d)
        report = monitor.step(step)
    monitor.close()
    return report


def test_a_monitor_gives_the_receipt_and_the_record_keeps_it(tmp_path):
    d = straying(0.3)
    d[0, :30] = 4.0
    penalty = Penalty("k3", clamp=10.0, beta=0.04)
    report = run_of(tmp_path / "run", penalty, d)
    pair = report.pairs["policy_ref"]
    for name, want in receipt(penalty, sums_of(d)).items():
        assert pair[name] == pytest.approx(want, rel=1e-12, nan_ok=True)
    assert str(penalty) == pair.penalty
    line = next(line for line in report.explain().splitlines() if "KL term" in line)
    assert f"the KL term is {penalty}; in the space of tokens it pulls" in line
    assert "times beta" in line
    assert f"{100 * np.mean(penalty.coefficient(d) == 0):.2g} % of the tokens pull nothing" in line
    read = read_run(tmp_path / "run").reports[-1]
    assert read.explain() == report.explain()
    assert "KL term" not in run_of(None, None, d).explain()


def test_of_another_samplers_tokens_the_line_says_what_the_rows_tell():
    d = straying(0.3).clip(-2, 2)
    d[0, :30] = 4.0
    monitor = Monitor(penalty=Penalty(clamp=10.0), strict=True)
    q = np.full_like(d, -20.0)
    monitor.observe(policy=q, ref=q + d, old=q + 0.1)
    text = monitor.step(0).explain()
    assert "a clamped token pulls nothing; in the space of tokens it pulls" in text
    lost = 4.0 * 30 / np.abs(d).sum()
    assert f"0.75 % of the tokens pull nothing, {lost:.0%} of what the reverse KL" in text


def test_penalties_by_pair():
    d = straying(0.3)
    by_sequence = Penalty("k1", "reward", returns="sequence")
    report = run_of(None, {"policy_ref": by_sequence}, d)
    assert "the sequence's return" in report.explain()
    pull = by_sequence.coefficient(d).mean()
    assert report.pairs["policy_ref"]["penalty/pull"] == pytest.approx(pull, rel=1e-9)
    assert "penalty/beta" not in run_of(None, {"old_ref": Penalty()}, d).pairs["policy_ref"].values
    with pytest.raises(ValueError, match="unknown pair 'ref_policy'"):
        Monitor(penalty={"ref_policy": Penalty()})
    with pytest.raises(TypeError, match=r"policy_ref is 'k3': give a klmonitor\.Penalty"):
        Monitor(penalty={"policy_ref": "k3"})
    with pytest.raises(TypeError, match="policy_ref is 'k3'"):
        Monitor(penalty="k3")
