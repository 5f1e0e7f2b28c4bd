"""`klmonitor simulate`: simulated batches agree with exact sums, exact sums with closed forms."""

from __future__ import annotations

import json
import math
from statistics import NormalDist
from xml.etree import ElementTree

import numpy as np
import pytest

from klmonitor.cli import main
from klmonitor.simulate.cases import log_softmax, noise, zipf_logits
from klmonitor.simulate.moments import MOMENTS, context_moments, from_moments, gaussian_truth
from klmonitor.simulate.study import ESTIMATORS, best_lambda, mixture, moments, study
from klmonitor.simulate.worlds import CONTEXTS, EXPLAINED, VOCABULARY, WORLDS, gaussian, make_pool

FROM_Q = ("gaussian", "zipf", "heavy-p", "collapse", "temperature")
LIGHT = ("gaussian", "zipf", "top-p", "stale", "temperature")
"""Cases in which no estimator's variance comes from tokens that are hardly ever drawn."""


@pytest.fixture(scope="module", params=WORLDS)
def pool(request):
    return make_pool(request.param, 0.02)


@pytest.mark.parametrize("mu", [0.01, 0.1, 1.0, 2.0, 3.0])
def test_the_gaussian_pool_has_the_closed_forms(mu):
    known, found = gaussian_truth(mu), gaussian(mu**2 / 2)
    for name, estimator in ESTIMATORS.items():
        mean, sd = moments(found, estimator)
        assert mean == pytest.approx(known.mean[name], rel=1e-8)
        assert sd == pytest.approx(known.sd[name], rel=1e-6)
    assert best_lambda(found) == pytest.approx(known.lam, rel=1e-6)
    for weight in (0.0, 0.3, 1.0, 1.5):
        variance = mu**2 - 2 * weight * mu**2 + weight**2 * math.expm1(mu**2)
        assert moments(found, mixture(weight))[1] ** 2 == pytest.approx(variance, rel=1e-5)


def test_a_pool_has_the_sums_over_its_contexts():
    """Against the other way of summing: contexts one by one."""
    found = make_pool("zipf", 0.02)
    d = found.d.reshape(CONTEXTS, VOCABULARY)
    logits = zipf_logits(np.random.default_rng(0), CONTEXTS, VOCABULARY)
    q = log_softmax(logits)
    np.testing.assert_allclose(found.weight.reshape(q.shape) * CONTEXTS, np.exp(q), rtol=1e-9)
    scale = 1.0
    for _ in range(60):  # the noise whose KL this is
        given = noise(scale)(np.random.default_rng(1), logits)
        kl = float((np.exp(given.q) * (given.q - given.p)).sum(-1).mean())
        scale *= math.sqrt(0.02 / kl)
    np.testing.assert_allclose(d, given.p - given.q, atol=1e-7)
    known = from_moments(dict(zip(MOMENTS, context_moments(given), strict=True)))
    for name, estimator in ESTIMATORS.items():
        assert moments(found, estimator) == pytest.approx(
            (known.mean[name], known.sd[name]), rel=1e-5
        )
    assert best_lambda(found) == pytest.approx(known.lam, rel=1e-5)


def test_the_kl_is_what_was_asked(pool):
    assert pool.kl == pytest.approx(0.02, rel=1e-8)
    assert pool.weight.sum() == pytest.approx(1, abs=1e-12)
    drawn_by_q = pool.name in FROM_Q
    k1 = moments(pool, ESTIMATORS["k1"])[0]
    r = pool.mean(np.expm1(pool.d))
    assert (k1 == pytest.approx(0.02, rel=1e-7)) == drawn_by_q
    assert (r == pytest.approx(0, abs=1e-9)) == drawn_by_q
    assert pool.name in EXPLAINED


def test_simulated_batches_agree_with_the_sums(pool):
    found = study(pool, (256,), batches=300)
    by_name = {outcome.estimator: outcome for outcome in found.outcomes}
    for one in found.outcomes:
        assert abs(one.mean - one.expected) < 5 * one.mean_error, one
        assert one.bias == pytest.approx(one.expected - pool.kl)
        if pool.name in LIGHT:
            assert one.sd_of_mean == pytest.approx(one.sd / 16, rel=0.25)
        assert 0 <= one.negative <= 1 >= one.coverage >= 0
        assert 1 / 256 <= one.top_share <= 1
    for weight, name in ((0, "k1"), (1, "k3")):
        cv = vars(by_name[f"cv {weight}"])
        same = {key: value for key, value in vars(by_name[name]).items() if key != "estimator"}
        assert {key: cv[key] for key in same} == pytest.approx(same, rel=1e-9, abs=1e-15)
    sds = {w: by_name[f"cv {w:g}"].sd for w in (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5)}
    nearest = min(sds, key=lambda w: abs(w - found.best_lambda))
    assert min(sds, key=sds.get) == nearest, "variance is a parabola in lambda"


@pytest.mark.parametrize("tokens", [64, 512])
def test_how_often_the_mean_of_k1_is_negative(tokens):
    """Between Gaussians k1 is Gaussian, so that the share is exact."""
    kl, batches = 0.01, 2000
    (outcome, *_) = study(gaussian(kl), (tokens,), batches=batches, lambdas=()).outcomes
    share = NormalDist().cdf(-math.sqrt(tokens * kl / 2))
    assert outcome.negative == pytest.approx(share, abs=4 * math.sqrt(share / batches))
    assert outcome.coverage == pytest.approx(0.95, abs=0.025)


def test_k3_is_right_on_average_and_wrong_in_nearly_every_batch_where_q_has_collapsed():
    outcomes = {o.estimator: o for o in study(make_pool("collapse", 0.02), (1024,)).outcomes}
    k1, k3 = outcomes["k1"], outcomes["k3"]
    assert abs(k3.bias) < 1e-9
    assert k3.median < 0.5 * 0.02
    assert k3.coverage < 0.2
    assert k1.coverage > 0.85


@pytest.mark.parametrize(
    ("case", "kl", "message"),
    [
        ("collapse", 3.0, "cannot be had: the most is"),
        ("gaussian", -1.0, "give one above 0"),
        ("gaussian", float("nan"), "give one above 0"),
        ("nonsense", 0.1, "unknown case 'nonsense'"),
    ],
)
def test_what_cannot_be_had_is_said(case, kl, message):
    with pytest.raises(ValueError, match=message):
        make_pool(case, kl)


def test_the_command_prints_a_table_or_json(tmp_path, capsys):
    argv = ["simulate", "--case", "zipf", "--kl", ".05", "--batch", "64,128", "--batches", "20"]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "zipf, KL 0.05 nats per token" in said
    assert "64 tokens a batch" in said
    assert "128 tokens a batch" in said
    assert main([*argv, "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["schema"] == "klmonitor.simulate/1"
    assert len(body["outcomes"]) == 2 * (3 + 7)
    for one in body["outcomes"]:
        if one["tokens"] == 64:
            start = f"{one['estimator']}  "
            line = next(x for x in said.splitlines() if x.strip().startswith(start))
            assert f"{one['sd'] / body['kl']:.3g}" in line.split()
    assert main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == body, "the same seed, the same numbers"


def test_the_picture_is_drawn_from_the_same_numbers(tmp_path, capsys):
    path = tmp_path / "cv.svg"
    assert main(["simulate", "--batches", "5", "--kl", ".5", "--plot", str(path)]) == 0
    root = ElementTree.fromstring(path.read_text())
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "k1 2" in texts
    assert any(text.startswith("k3 1.7") for text in texts)
    assert any(text.startswith("lambda* ") for text in texts)
    lines = [e for e in root.iter() if e.tag.endswith("polyline")]
    assert len(lines) == 3


@pytest.mark.parametrize("argv", [["--batch", "1"], ["--batch", "many"], ["--kl", "9"]])
def test_wrong_arguments_are_2(argv, capsys):
    assert main(["simulate", *argv]) == 2
    assert capsys.readouterr().err.startswith("klmonitor simulate: ")
