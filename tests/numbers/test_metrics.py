"""Every metric of the table against its plain numpy formula on the same tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from klmonitor.numbers.metrics import CORE, METRICS, NAMES
from klmonitor.numbers.student import deviate_of_t, t_quantile
from klmonitor.pairs import default_pairs
from klmonitor.summary.batch import build
from klmonitor.summary.extremes import Place
from klmonitor.summary.fields import SummaryConfig
from klmonitor.summary.passes import accumulate
from klmonitor.summary.state import Summary
from tests.helpers.reference import plain_metrics
from tests.helpers.steps import choose_pass, reports_of

COUNTS = ("tokens", "sequences", "clusters", "prompts", "outliers/k1", "outliers/k3", "clamped")
QUANTILES = ("p0.1", "p1", "p25", "p50", "p75", "p99", "p99.9")
ELSEWHERE = {
    # rules, running numbers, the mixture and input checks have tests of their own
    *("spike/z", "best", "cv/mean"),
    *(name for name in NAMES if name.startswith(("penalty/", "audit/", "clip/", "unclipped/"))),
    *(f"{k}/running_{what}" for k in ("k1", "k2", "k3") for what in ("mean", "var")),
    *("nonfinite", "positive_logp", "zero_logp", "low_precision"),
    *(f"dominance/{k}/{what}" for k in ("k1", "k3") for what in ("level", "tokens", "v", "j")),
    "dominance/level",
    # signatures have their references in test_signatures.py
    *("sequence/ratio_beyond_3", "sequence/ratio_below_third", "sequence/ess"),
    *("sequence/largest_k3", "entropy", "entropy/k3_share"),
    *(name for name in NAMES if name.startswith("by_probability/")),
    # the k3 rule chooses how many tokens it leaves out
    *("k3/mean_without_top", "dominance/k3/top_share"),
}


@pytest.fixture(scope="module", autouse=True, params=["compiled", "plain"])
def the_pass(request):
    """Both of the CPU's passes, whatever the size of a batch."""
    with pytest.MonkeyPatch.context() as patch:
        choose_pass(patch, request.param)
        yield request.param


def report_of(log_probs, **layout):
    batch = build(log_probs, **layout)
    state = Summary.empty(SummaryConfig())
    pairs = default_pairs(batch.log_probs)
    accumulate(state, batch, pairs, place=Place())
    return reports_of(state)


def batch_of(scale, *, seed=0, rows=40, columns=300, heavy=False):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, columns + 1, rows)
    mask = np.arange(columns) < lengths[:, None]
    q = -generator.exponential(1.5, (rows, columns)).astype(np.float32)
    noise = (
        generator.standard_t(3, (rows, columns))
        if heavy
        else generator.normal(size=(rows, columns))
    )
    effect = generator.normal(size=(rows, 1)) * 0.3
    p = (q + scale * (noise + effect)).astype(np.float32)
    return q, p, mask


CASES = {
    "small": batch_of(0.01),
    "moderate": batch_of(0.3, seed=1),
    "wide": batch_of(1.5, seed=2),
    "heavy": batch_of(0.5, seed=3, heavy=True),
    "beyond the core": batch_of(6.0, seed=4, heavy=True),
    "long rows": batch_of(0.2, seed=5, rows=3, columns=9000),
}


def check(values, expected, skip=frozenset()):
    missing = set(NAMES) - ELSEWHERE - set(expected)
    assert not missing, f"metrics without a reference: {missing}"
    for name, want in expected.items():
        if name in skip:
            continue
        got = values[name]
        if name in COUNTS or name.startswith(("log_ratio/le", "log_ratio/ge")):
            np.testing.assert_equal(got, float(want), err_msg=name)
        elif name.removeprefix("log_ratio/") in QUANTILES:
            assert got == pytest.approx(want, rel=0.01, abs=2**-20), name
        else:
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-15, err_msg=name)


def measured(case):
    """The pair's report of a case, and its log-ratios."""
    q, p, mask = CASES[case]
    (pair,) = report_of(
        {"policy": torch.tensor(q), "ref": torch.tensor(p)}, mask=torch.tensor(mask)
    ).values()
    return pair, (p.astype(np.float64) - q.astype(np.float64))[mask]


@pytest.mark.parametrize("case", CASES)
def test_every_metric_equals_its_formula(case):
    q, _, mask = CASES[case]
    pair, d = measured(case)
    sequence = np.broadcast_to(np.arange(len(q))[:, None], q.shape)[mask]
    skip = {"k3/mean_without_top", "dominance/k3/top_share"}
    if case == "beyond the core":  # differences of e^30 apart cancel: checked in test_dominance
        skip |= {"cv/corr"}
    check(pair.values, plain_metrics(d, sequence), skip)


@pytest.mark.parametrize("case", CASES)
def test_the_drawn_histogram_counts_every_token(case):
    pair, d = measured(case)
    octaves = np.ldexp(np.array([1.0, 1.25, 1.5, 1.75]), np.arange(-20, 7)[:, None]).ravel()
    edges = np.concatenate([[0.0], octaves, [128.0, np.inf]])
    expected = []
    for sign, side in ((-1.0, d[np.signbit(d)]), (1.0, d[~np.signbit(d)])):
        counts, _ = np.histogram(np.abs(side), edges)
        found = [(sign * edge, n) for edge, n in zip(edges, counts, strict=False) if n]
        expected += found[::-1] if sign < 0 else found
    assert list(pair.histogram) == expected


@pytest.mark.parametrize(("drew", "noise"), [("old", 0.2), ("old", 0.05), ("rollout", 0.05)])
@pytest.mark.parametrize("completions", [4, 20, 40])
def test_off_policy_and_prompts(completions, drew, noise):
    """Two prompts are clusters; one, whose spread cannot be told, is not: its sequences are.

    Of tokens that are nearly q's own (noise of .05) there is a gap, importance-weighted.
    """
    q, p, mask = CASES["moderate"]
    generator = np.random.default_rng(9)
    sampler = (q + noise * generator.normal(size=q.shape)).astype(np.float32)
    prompts = np.arange(len(q)) // completions
    pairs = report_of(
        {"policy": torch.tensor(q), "ref": torch.tensor(p), drew: torch.tensor(sampler)},
        mask=torch.tensor(mask),
        prompt_ids=torch.tensor(prompts),
    )
    assert set(pairs) == {"policy_ref", f"{drew}_policy"}
    d = (p.astype(np.float64) - q.astype(np.float64))[mask]
    sequence = np.broadcast_to(np.arange(len(q))[:, None], q.shape)[mask]
    expected = plain_metrics(
        d,
        sequence,
        prompt=prompts[sequence],
        sampler=sampler.astype(np.float64)[mask],
        log_q=q.astype(np.float64)[mask],
    )
    check(pairs["policy_ref"].values, expected, {"k3/mean_without_top", "dominance/k3/top_share"})
    assert pairs[f"{drew}_policy"]["on_policy"] == 1
    assert np.isnan(pairs[f"{drew}_policy"]["iw/ess"])
    assert np.isnan(pairs["policy_ref"]["gap"]) == (noise == 0.2)


def test_lambda_is_numpys_covariance_on_a_small_vocabulary():
    generator = np.random.default_rng(3)
    q, p = generator.dirichlet(np.full(30, 5.0), size=2)
    x = generator.choice(30, size=(64, 128), p=q)
    log_q, log_p = np.log(q)[x], np.log(p)[x]
    (pair,) = report_of({"policy": torch.tensor(log_q), "ref": torch.tensor(log_p)}).values()
    assert pair["ess"] > 0.3
    d = (log_p - log_q).ravel()
    covariance = np.cov(-d, np.exp(d) - 1)
    assert pair["cv/lambda"] == pytest.approx(
        np.clip(-covariance[0, 1] / covariance[1, 1], 0, 1), rel=1e-10
    )


def test_values_near_zero_do_not_look_like_low_precision():
    """After a collapse log-probs are multiples of 2^-24 near 0: few bits, in any precision."""
    q = -torch.randint(0, 200, (4, 64)) * 2.0**-24
    (pair,) = report_of({"policy": q, "ref": q - 2.0**-23}).values()
    assert pair["low_precision"] == 0


def test_integrity_counts():
    q = torch.full((4, 8), -1.0)
    p = torch.full((4, 8), -1.25)
    p[0, 0], p[0, 1], p[0, 2], p[1, 0], p[1, 1] = (
        float("nan"),
        float("inf"),
        -float("inf"),
        0.5,
        0.0,
    )
    mask = torch.ones(4, 8, dtype=torch.bool)
    mask[3] = False
    p[3] = float("nan")
    (pair,) = report_of({"policy": q, "ref": p}, mask=mask).values()
    assert pair["nonfinite"] == 3
    assert pair["tokens"] == 21
    assert pair["positive_logp"] == 2  # 0.5 and +inf
    assert pair["zero_logp"] == 1
    assert pair["sequences"] == 3
    assert np.isfinite(pair.k1.mean)


def test_an_all_zero_reference_is_counted():
    (pair,) = report_of({"policy": torch.full((2, 8), -1.0), "ref": torch.zeros(2, 8)}).values()
    assert pair["zero_logp"] == 16


@pytest.mark.parametrize(
    ("dtype", "flag"), [(torch.bfloat16, 1), (torch.float16, 1), (torch.float32, 0)]
)
def test_low_precision_is_seen_in_dtype_and_in_values(dtype, flag):
    generator = torch.Generator().manual_seed(1)
    q, p = (-torch.rand(8, 64, generator=generator) * 3 for _ in range(2))
    for values in (q.to(dtype), q.to(dtype).float()):
        (pair,) = report_of({"policy": values, "ref": p}).values()
        assert pair["low_precision"] == flag


def test_the_table_is_complete_and_the_core_small():
    assert len(set(NAMES)) == len(NAMES)
    assert all(metric.unit and metric.formula and metric.text for metric in METRICS)
    penalised = sum(name.startswith("penalty/") for name in CORE)  # of one pair
    assert len(CORE) - penalised <= 13
    series = 2 * len(CORE) - penalised + len(("kl/alerts", "klmonitor/active"))
    assert series <= 30, "a default run with two pairs sends at most 30 series"


def test_nothing_counted_is_nan():
    (pair,) = report_of(
        {"policy": torch.full((2, 3), torch.nan), "ref": torch.zeros(2, 3)}
    ).values()
    assert pair["tokens"] == 0
    assert pair["nonfinite"] == 6
    nan_expected = [n for n in NAMES if n.endswith(("mean", "/se", "/var", "/min", "/max"))]
    assert all(np.isnan(pair[name]) for name in nan_expected)


@pytest.mark.parametrize(
    ("df", "short"), [(1, 0.11), (2, 0.07), (3, 0.05), (7, 0.02), (15, 0.01), (63, 0.003)]
)
def test_a_ratio_to_a_rough_error_is_told_as_a_deviate_of_t(df, short):
    for t in (2.0, 5.0, 40.0, 1000.0):
        found, tail = deviate_of_t(t, df), stats.t.sf(t, df)
        assert deviate_of_t(-t, df) == -found
        if tail > 1e-300:
            exact = stats.norm.isf(tail)
            assert (1 - short) * exact <= found <= exact
    assert np.isnan(deviate_of_t(3.0, 0))


@pytest.mark.parametrize("df", [1, 2, 3, 4, 10, 100])
def test_quantiles_of_t(df):
    for probability in (0.6, 0.9, 0.975):
        assert t_quantile(probability, df) == pytest.approx(stats.t.ppf(probability, df), rel=4e-3)


def test_a_clean_step_of_two_clusters_seldom_fails_the_gap_test():
    generator = np.random.default_rng(5)
    failed = 0
    for _ in range(400):
        d = 0.1 * generator.normal(size=(2, 50)) - 0.005  # log of a lognormal of mean 1
        q = -generator.exponential(size=d.shape)
        (pair,) = report_of({"policy": torch.tensor(q), "ref": torch.tensor(q + d)}).values()
        failed += abs(pair["gap_z"]) > 3
    assert failed <= 6  # .27 % of 400 is 1; a ratio to the error would exceed 3 in 20 %


def test_a_constant_log_ratio_is_no_bias():
    q = -torch.rand(40, 10, dtype=torch.float64)
    (pair,) = report_of({"policy": q, "ref": q + 0.25}).values()
    assert abs(pair["k1/mean"] + 0.25) < 1e-12
    assert pair["k1/se"] < 1e-9
    assert pair["k2/bias"] == pytest.approx(0.25**2 / 2 + 0.25, rel=1e-12)
    assert pair["gap"] == pytest.approx(np.expm1(0.25), rel=1e-12)


def test_what_rounding_leaves_of_nothing_is_no_gap():
    """e^d - 1 is a and -a in turn: its mean is some 1e-18 of 0.3, and so is its error."""
    a = torch.linspace(0.1, 0.5, 200, dtype=torch.float64).view(20, 10)
    d = torch.stack([torch.log1p(a), torch.log1p(-a)], dim=-1).flatten(1)
    q = -1 - torch.rand(d.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (pair,) = report_of({"policy": q, "ref": q + d}).values()
    assert 0 < abs(pair["gap"]) < 1e-15, "else there is nothing to guard against"
    assert pair["gap_z"] == 0
    assert abs(pair["k1/mean"]) > 0.01


def test_one_huge_token_leaves_the_mean_of_the_others_exact():
    generator = np.random.default_rng(6)
    q = -generator.exponential(size=(16, 64))
    d = 0.1 * generator.normal(size=q.shape) - 0.005
    rest = np.delete(np.expm1(d) - d, 0)
    for huge in (22.0, 26.0, 34.0, 60.0, 300.0):
        d[0, 0] = huge
        (pair,) = report_of({"policy": torch.tensor(q), "ref": torch.tensor(q + d)}).values()
        assert pair["k3/mean_without_top"] == pytest.approx(rest.mean(), rel=1e-9)
