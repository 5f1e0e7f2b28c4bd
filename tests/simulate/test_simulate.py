"""The simulated distributions: closed forms, exact sums, and samples that agree with both."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from klmonitor.simulate import (
    CASES,
    CLEAN_FAMILIES,
    Clustering,
    gaussian_rows,
    gaussian_truth,
    sample,
    truth,
    vocabulary_rows,
)
from klmonitor.simulate.cases import log_softmax, top_p, zipf_logits
from klmonitor.simulate.moments import MOMENTS, context_moments, from_moments

BY_NAME = {case.name: case for case in CASES}

SCHULMAN = {
    # mu: KL, bias of k2, sd of k1, k2, k3, all but the first over the KL
    0.1: (0.005, 0.0025, 20.0, 1.42, 1.42),
    1.0: (0.5, 0.25, 2.0, 1.73, 1.70),
}


@pytest.mark.parametrize("mu", SCHULMAN)
def test_schulmans_table(mu):
    kl, bias, *sds = SCHULMAN[mu]
    found = gaussian_truth(mu)
    assert found.kl == pytest.approx(kl, rel=1e-12)
    assert found.mean["k2"] / found.kl - 1 == pytest.approx(bias, rel=1e-3)
    for name, sd in zip(("k1", "k2", "k3"), sds, strict=True):
        assert found.sd[name] / found.kl == pytest.approx(sd, rel=5e-3)


@pytest.mark.parametrize("mu", [0.1, 1.0, 1.7])
def test_the_gaussian_closed_forms_equal_numerical_integrals(mu):
    found = gaussian_truth(mu)

    def expect(f):
        d = lambda x: mu * x - mu**2 / 2  # noqa: E731  # log N(x; mu, 1) - log N(x; 0, 1)
        return quad(lambda x: norm.pdf(x) * f(d(x)), -15, 15, epsabs=1e-13, limit=200)[0]

    estimators = {"k1": lambda d: -d, "k2": lambda d: d**2 / 2, "k3": lambda d: np.expm1(d) - d}
    for name, k in estimators.items():
        mean = expect(k)
        assert found.mean[name] == pytest.approx(mean, rel=1e-7)
        variance = expect(lambda d, k=k, mean=mean: (k(d) - mean) ** 2)
        assert found.sd[name] == pytest.approx(variance**0.5, rel=1e-6)
    variance_r = expect(lambda d: np.expm1(d) ** 2)
    lam = expect(lambda d: d * np.expm1(d)) / variance_r
    best = expect(lambda d: (-d + lam * np.expm1(d) - found.kl) ** 2)
    assert found.lam == pytest.approx(lam, rel=1e-6)
    assert found.variance_ratio == pytest.approx(best / found.sd["k3"] ** 2, rel=1e-5)


def test_k3_becomes_noisier_than_k1_at_0_628_nats():
    below, above = (gaussian_truth((2 * kl) ** 0.5) for kl in (0.627, 0.629))
    assert below.sd["k3"] < below.sd["k1"]
    assert above.sd["k3"] > above.sd["k1"]


TABLE = {
    # case: KL, bias of k2, sd/KL of k1, k2, k3, lambda*, var(lambda*)/var(k3)
    "noise .01": (2.0e-5, -0.001, 316, 2.7, 2.7, 0.999, 0.98),
    "noise .1": (2.0e-3, -0.005, 31, 2.6, 2.7, 0.984, 0.96),
    "noise .5": (0.052, 0.03, 6.2, 2.6, 2.7, 0.83, 0.81),
    "noise 1.5": (0.50, 0.48, 2.2, 3.4, 3.3, 0.29, 0.35),
    "temperature .8": (0.079, 0.40, 5.8, 4.6, 2.6, 1.30, 0.78),
    "temperature 2": (0.76, 0.21, 1.5, 2.0, 165, 0.0, 0.0),
    "collapse": (0.042, -0.57, 4.4, 2.0, 886, 0.0, 0.0),
}


@pytest.fixture(scope="module")
def rows():
    cases = [BY_NAME[name] for name in [*TABLE, "catastrophes"]]
    return {row["case"]: row for row in vocabulary_rows(cases, contexts=192, seed=1)}


@pytest.mark.parametrize("name", TABLE)
def test_the_vocabulary_table(rows, name):
    """The table is one draw of 2,500 contexts and so is this of 192; sums over the vocabulary are
    exact in both. Over eight draws of 256 contexts the KL varied by 12 % around its median, the
    standard deviations by 19 %, lambda by .05, the variance ratio by .08, k2's bias by .10."""
    kl, bias, k1_sd, k2_sd, k3_sd, lam, ratio = TABLE[name]
    row = rows[name]
    assert row["kl"] == pytest.approx(kl, rel=0.25)
    assert row["k2_mean"] - 1 == pytest.approx(bias, abs=0.15)
    assert row["k1_sd"] == pytest.approx(k1_sd, rel=0.2)
    assert row["k2_sd"] == pytest.approx(k2_sd, rel=0.25)
    assert row["k3_sd"] == pytest.approx(k3_sd, rel=0.3)
    assert row["lambda"] == pytest.approx(lam, abs=0.08)
    assert row["variance_ratio"] == pytest.approx(ratio, abs=0.15)


def test_the_collapse_does_not_depend_on_contexts(rows):
    """19 of 20 parts of its moments come from fixed probabilities: two digits are the table's."""
    row = rows["collapse"]
    assert row["kl"] == pytest.approx(0.042, abs=1e-3)
    assert row["k2_mean"] - 1 == pytest.approx(-0.57, abs=0.01)
    assert row["k1_sd"] == pytest.approx(4.4, abs=0.05)
    assert row["k3_sd"] == pytest.approx(886, rel=0.02)


def test_catastrophes_leave_only_k1_alone(rows):
    """Ten of 2,500 contexts carry this row of the table (KL .126, k2 +1739 %, k3's sd 3.5e6 KL):
    all that a second draw can share with it is the size of the KL and of the damage."""
    row = rows["catastrophes"]
    assert row["kl"] == pytest.approx(0.126, rel=0.4)
    assert row["k2_mean"] - 1 > 10
    assert row["k1_sd"] == pytest.approx(17, rel=0.4)
    assert row["k3_sd"] > 1e6
    assert row["lambda"] < 1e-6


def test_unbiased_where_q_draws_the_tokens(rows):
    for row in [*rows.values(), *gaussian_rows()]:
        assert row["k1_mean"] == pytest.approx(1, abs=1e-9)
        assert row["k3_mean"] == pytest.approx(1, abs=1e-9)
        assert row["gap"] == pytest.approx(0, abs=1e-9)


def test_top_p_shows_in_the_gap_and_not_in_a_clean_case():
    found = truth(BY_NAME["top-p .95"], contexts=64, vocabulary=4000)
    assert abs(found.gap) > 1e-3 * found.kl
    assert found.mean["k1"] != pytest.approx(found.kl, rel=1e-3)


def test_cutting_the_sampler_gives_the_kept_mass():
    """Equal weights, top-p .95: the sampler's log-probs against the full ones read E[r] = the kept
    mass (.95 or more) and a false k1 of -log of it."""
    logits = zipf_logits(np.random.default_rng(0), 200, 4000) / 3
    q = log_softmax(logits)
    probs = np.sort(np.exp(q), axis=-1)[:, ::-1]
    kept = np.where(np.cumsum(probs, axis=-1) - probs < 0.95, probs, 0.0)
    mass = kept.sum(-1)
    cut = top_p(0.95)(np.random.default_rng(1), logits).sampler
    inside = np.isfinite(cut)
    r = np.exp(np.where(inside, q - cut, 0.0))
    np.testing.assert_allclose((np.exp(cut) * r).sum(-1), mass, rtol=1e-9)
    np.testing.assert_allclose((np.exp(cut) * -np.log(r)).sum(-1), -np.log(mass), atol=1e-12)
    assert mass.min() >= 0.95
    assert np.median(-np.log(mass)) == pytest.approx(0.051, abs=0.01)


def test_moments_are_plain_sums():
    """Against loops over tokens, from the definitions."""
    case = BY_NAME["stale sampler"]
    rng = np.random.default_rng(3)
    given = case.parts[0][1](rng, zipf_logits(rng, 3, 20))
    expected = np.zeros(len(MOMENTS))
    for q, p, s in zip(given.q, given.p, given.sampler, strict=True):
        for log_q, log_p, log_s in zip(q, p, s, strict=True):
            d = log_p - log_q
            k1, k2, k3, r = -d, d * d / 2, np.exp(d) - 1 - d, np.exp(d) - 1
            terms = (k1, k2, k3, k1 * k1, k2 * k2, k3 * k3, r * r, k1 * r)
            expected += np.array([*(np.exp(log_s) * t for t in terms), np.exp(log_q) * k1]) / 3
    np.testing.assert_allclose(context_moments(given), expected, rtol=1e-9, atol=1e-15)


def test_lambda_is_numpys_regression():
    rng = np.random.default_rng(5)
    d = rng.normal(-0.3, 0.7, 4000)
    k = {"k1": -d, "k2": d**2 / 2, "k3": np.expm1(d) - d, "r": np.expm1(d)}
    products = {a + b: (k[a] * k[b]).mean() for a, b in
                (("k1", "k1"), ("k2", "k2"), ("k3", "k3"), ("k1", "r"))}  # fmt: skip
    means = {name: k[name].mean() for name in ("k1", "k2", "k3")}
    found = from_moments(means | products | {"rr": (k["r"] ** 2).mean(), "kl": means["k1"]})
    covariance = np.cov(k["k1"], k["r"], ddof=0)
    lam = -covariance[0, 1] / covariance[1, 1]
    assert found.lam == pytest.approx(lam, rel=1e-9)
    best = (k["k1"] + lam * k["r"]).var()
    assert found.variance_ratio == pytest.approx(best / k["k3"].var(), rel=1e-9)


@pytest.mark.parametrize("name", ["noise .5", "temperature 2", "collapse", "top-p .95"])
def test_sampled_tokens_have_the_exact_means(name):
    """Contexts are redrawn, so both sides are averaged over many; 4 standard errors over contexts.

    For k1, whose variance is finite in every case.
    """
    case = BY_NAME[name]
    tokens = sample(np.random.default_rng(7), case, sequences=3000, tokens=20, vocabulary=300)
    by_context = -tokens.d.mean(1)
    error = by_context.std(ddof=1) / np.sqrt(len(by_context))
    expected = truth(case, contexts=6000, vocabulary=300, seed=8).mean["k1"]
    assert abs(by_context.mean() - expected) < 4.5 * error
    assert error < 0.25 * expected


def test_samples_are_seeded_and_log_probs_are_negative():
    case = CLEAN_FAMILIES["t4 noise"][0]
    first, second = (
        sample(np.random.default_rng(2), case, sequences=5, tokens=7, vocabulary=50)
        for _ in range(2)
    )
    np.testing.assert_array_equal(first.d, second.d)
    assert first.q.shape == first.p.shape == (5, 7)
    assert (first.q < 0).all()
    assert (first.p < 0).all()


def test_the_clean_families_are_sixteen_cases():
    cases = [case.name for family in CLEAN_FAMILIES.values() for case in family]
    assert len(set(cases)) == 16
    assert list(CLEAN_FAMILIES)[-1] == "uneven noise"


@pytest.mark.parametrize("clustering", [Clustering(2000), Clustering(600, 8, icc=0.3)])
def test_clustered_tokens_have_the_stated_kl(clustering):
    drawn = clustering.sample(np.random.default_rng(1))
    d = np.where(drawn.mask, drawn.tokens.d, 0.0)
    lengths = drawn.mask.sum(1)
    assert lengths.min() >= clustering.lengths[0]
    assert lengths.max() <= clustering.lengths[1]
    for k in (-d, np.expm1(d) - d):
        residual = k.sum(1) - drawn.kl * lengths
        sums = np.bincount(drawn.prompts, weights=residual)
        error = np.sqrt((sums**2).sum()) / lengths.sum()
        assert abs(residual.sum() / lengths.sum()) < 4 * error
        assert error < 0.1 * drawn.kl


def test_completions_of_a_prompt_have_the_stated_correlation():
    """One-way analysis of variance of the sequences' mean k1."""
    clustering = Clustering(4000, 8, icc=0.3)
    drawn = clustering.sample(np.random.default_rng(4))
    means = -np.where(drawn.mask, drawn.tokens.d, 0.0).sum(1) / drawn.mask.sum(1)
    means = means.reshape(4000, 8)
    between, within = 8 * means.mean(1).var(ddof=1), means.var(1, ddof=1).mean()
    assert (between - within) / (between + 7 * within) == pytest.approx(0.3, abs=0.03)


def test_an_impossible_correlation_says_what_is_possible():
    with pytest.raises(ValueError, match=r"icc 0.9 cannot be had.*largest is 0\.\d+"):
        Clustering(8, 8, icc=0.9).sample(np.random.default_rng(0))
