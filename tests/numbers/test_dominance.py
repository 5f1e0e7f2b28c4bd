"""The dominance rules: their formulas against plain numpy, their edges, their measured rates."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from benchmarks.dominance import (
    cases_of,
    found_share,
    judge,
    k3,
    measure,
    measure_few,
    right_tail,
)
from klmonitor.numbers.dominance import (
    K1_THRESHOLDS,
    K3_THRESHOLDS,
    SEVERE,
    WARN,
    dominance_k1,
    dominance_k3,
    k3_thresholds,
    most_tokens_k1,
    most_tokens_k3,
)


def normal(n, scale=0.06, seed=0):
    return np.random.default_rng(seed).normal(0, scale, n)


def plain(x, key, m):
    """V, J, share, mean without, apart of the m tokens of largest key, from their definitions."""
    order = np.argsort(-key, kind="stable")
    top, rest = x[order[:m]], x[order[m:]]
    v = ((top - x.mean()) ** 2).sum() / ((x - x.mean()) ** 2).sum()
    j = (x.mean() - rest.mean()) / (rest.std(ddof=1) / np.sqrt(len(x)))
    share = np.abs(top).sum() / np.abs(x).sum()
    return v, j, share, rest.mean(), np.abs(top[-1]) / np.abs(rest[0])


def plain_k3(d):
    """The k of the largest score with its numbers, by trying all."""
    x = k3(d)
    found = {}
    for k in range(1, most_tokens_k3(len(d)) + 1):
        numbers = plain(x, x, k)
        j, apart = numbers[1], numbers[4]
        found[k] = (3 * np.log(j) + np.sqrt(k) * np.log(apart) if j >= 2 else -np.inf, numbers)
    if max(score for score, _ in found.values()) == -np.inf:
        return max(found.items(), key=lambda item: item[1][1][1])
    return max(found.items(), key=lambda item: item[1][0])


def plain_few(d, estimator):
    """(level, k) of the few tokens that hold half, pull by 3 errors and stand apart; (0, 0): none.

    k1: weights d^2 in the order of |d|, half of sum (k1 - mean)^2; k3: its own values.
    """
    x, w = (-d, d * d) if estimator == "k1" else (k3(d), k3(d))
    order = np.argsort(-w, kind="stable")
    squares = (x - x.mean()) ** 2 if estimator == "k1" else x
    best = (0, -np.inf, 0)
    for k in range(1, min(max(len(d) // 128, 1), 16) + 1):
        top, rest = order[:k], x[order[k:]]
        apart = np.sqrt(k) * np.log(w[order[k - 1]] / w[order[k]])
        j = (x.mean() - rest.mean()) / (rest.std(ddof=1) / np.sqrt(len(x)))
        odd = abs(d[order[k - 1]]) >= 2
        level = sum(apart >= least for least in ((1.0, 3.0) if odd else (3.0, 6.0)))
        if level and squares[top].sum() >= squares.sum() / 2 and abs(j) >= 3:
            best = max(best, (level, apart, k))
    return best[0], best[2]


def plain_far_k1(d):
    """(level, k) by V and J of the m tokens of largest |d|, cut where they are furthest apart."""
    order = np.argsort(-np.abs(d), kind="stable")
    m = min(max(len(d) // 400, 1), 10)

    def level_of(k):
        v, j, *_ = plain(-d, np.abs(d), k)
        return sum(v >= least and abs(j) >= pull for least, pull in K1_THRESHOLDS.values())

    if not level_of(m):
        return 0, m
    apart = {
        k: np.sqrt(k) * np.log(abs(d[order[k - 1]] / d[order[k]]))
        for k in range(1, m + 1)
        if level_of(k) >= level_of(m)
    }
    return level_of(m), max(apart, key=apart.get)


@pytest.mark.parametrize("n", [100, 256, 1024, 4096, 20_000])
@pytest.mark.parametrize(
    "bad",
    [[], [-3.0], [2.5], [3.0, 2.9], [-40.0, 1.0], [1.1, 1.0, 1.2, -4], [-6.0] * 7, [8, -8, 8, 9]],
)
def test_the_numbers_are_their_formulas(n, bad):
    d = normal(n)
    d[: len(bad)] = bad
    for rule in ("k1", "k3"):
        x, size = (-d, np.abs(d)) if rule == "k1" else (k3(d), k3(d))
        found, few = judge(d, rule), plain_few(d, rule)
        if rule == "k1":
            far = plain_far_k1(d)
        else:
            k, (score, _) = plain_k3(d)
            far = sum(score >= least for least in k3_thresholds(n)), k
        assert (found.level, found.tokens) == (few if few[0] >= max(far[0], 1) else far)
        numbers = plain(x, size, int(found.tokens))
        np.testing.assert_allclose(found[2:], numbers, rtol=1e-5 if rule == "k3" else 1e-9)


@pytest.mark.parametrize("n", [512, 1024, 4096])
@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_the_few_tokens_that_a_person_sees_are_named_and_no_other(n, side):
    """As many as N / 128 at |d| = 6 to 9 among noise of .1; k1 where they do not cancel."""
    rng = np.random.default_rng(n)
    for count in range(1, n // 128 + 1 if n < 2048 else 17):
        d = normal(n, 0.1, seed=count)
        sign = {"left": -1, "right": 1, "both": (-1) ** np.arange(count)}[side]
        d[:count] = sign * rng.uniform(6, 9, count)
        found = judge(d, "k3")
        assert found.level == SEVERE
        assert found.tokens == count if side != "both" else 1 <= found.tokens <= count
        if abs(d[:count].sum()) > 6 * 0.1 * n**0.5:  # six errors of the others
            assert judge(d, "k1")[:2] == (SEVERE, count)


def test_what_lies_beyond_the_listed_tokens_is_part_of_the_rest():
    """Sixteen of forty alike, all that is listed of their tail, are not few."""
    d = normal(4096, 0.1)
    d[:40] = -6.0
    assert judge(d, "k3").level == 0
    x, ends = k3(d), np.sort(d)
    tails = (-ends[:16], ends[-16:])
    known = dominance_k3(4096, x.mean(), x.var(ddof=1), *tails, unlisted=(-np.inf, 0.3))
    assert known.level == 0


def test_one_token_of_1024_still_names_k1():
    d = normal(1024)
    d[5] = -5.0
    assert judge(d, "k1").level >= WARN
    assert judge(d, "k1").tokens == 1


@pytest.mark.parametrize(("bad", "n"), [(7.1, 256), (8.0, 256), (7.1, 16_384)])
def test_a_token_on_the_right_dominates_k3(bad, n):
    """Whatever k1 says: +7.1 among 256 can leave k1 unmoved while it holds 98 % of k3."""
    d = normal(n, scale=0.25)
    d[17] = bad
    found = judge(d, "k3")
    assert (found.level, found.tokens) == (SEVERE, 1.0)
    assert found.top_share > 0.7
    assert found.mean_without_top == pytest.approx(k3(np.delete(d, 17)).mean(), rel=1e-9)


def test_k3_is_dominated_where_k1_is_not():
    d = normal(4096, scale=0.25)
    d[17] = 7.1
    assert judge(d, "k1").level == 0
    assert judge(d, "k3").level == SEVERE


@pytest.mark.parametrize("n", [256, 4096])
def test_a_token_on_the_left_dominates_k1(n):
    d = normal(n, scale=0.1)
    d[17] = -40.0
    found = judge(d, "k1")
    assert found.level == SEVERE
    assert found.j > 3
    assert abs(found.mean_without_top) < 4 * 0.1 / math.sqrt(n)


@pytest.mark.parametrize(
    ("tokens", "v", "level"), [(3, 0.62, 1), (8, 0.41, 0), (10, 0.47, 0), (10, 0.49, 1)]
)
def test_of_more_than_three_tokens_that_hold_less_than_half_a_pull_of_three_errors_is_asked(
    tokens, v, level
):
    """J = sqrt(tokens V / (1 - V)) where they are alike: 2.2, 2.4, 2.98 and 3.1."""
    n = 16384
    d = normal(n, 0.05, seed=3)
    d -= d.mean()
    squares = (d[tokens:] ** 2).sum() * v / (1 - v)
    d[:tokens] = -np.sqrt(squares / tokens)
    found = judge(d, "k1")
    assert found.level == level
    if level:
        assert found.tokens == tokens
        assert found.j == pytest.approx(np.sqrt(tokens * v / (1 - v)), rel=0.02)


def test_an_outlier_does_not_hide_behind_its_own_spread():
    """J divides by the error of the rest; by the whole's it could never exceed 1 for one token."""
    d = normal(256)
    d[0] = -500.0
    whole = (-d.mean() - -d[1:].mean()) / (d.std(ddof=1) / 16)
    assert whole < 1.01
    assert judge(d, "k1").j > 100


@pytest.mark.parametrize("rule", ["k1", "k3"])
def test_all_zeros_and_rounding_noise_are_no_finding(rule):
    assert judge(np.zeros(256), rule).level == 0
    assert judge(np.zeros(256), rule).mean_without_top == 0
    noise = np.zeros(256)
    noise[[3, 5]] = 1.2e-7, -6e-8
    assert judge(noise, rule).level == 0
    real = np.zeros(256)
    real[3] = 0.5
    assert judge(real, rule).level == SEVERE
    assert judge(real, rule).apart == math.inf
    assert judge(real, rule).mean_without_top == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("value", [-1.3125, 0.1, 7.0, 300.0])
@pytest.mark.parametrize("rule", ["k1", "k3"])
def test_a_constant_is_carried_by_all_alike(rule, value):
    found = judge(np.full(500, value), rule)
    assert found.level == 0
    assert abs(found.j) < 1e-6


def test_nothing_counted_is_nan():
    for found in (
        dominance_k1(0, math.nan, math.nan, 0.0, [], []),
        dominance_k3(0, math.nan, math.nan, [], []),
    ):
        assert all(math.isnan(value) for value in found)


@pytest.mark.parametrize("n", [1, 2, 3, 20, 63])
def test_too_few_tokens_are_never_dominated(n):
    d = np.full(n, 0.01)
    d[0] = -9.0
    var = d.var(ddof=1) if n > 1 else math.nan
    x = k3(d)
    var_k3 = x.var(ddof=1) if n > 1 else math.nan
    tails = ([9.0], d[1:])
    assert dominance_k1(n, -d.mean(), var, np.abs(d).sum(), *tails).level == 0
    assert dominance_k3(n, x.mean(), var_k3, *tails).level == 0


def test_sums_that_overflowed_are_severe():
    for var in (math.inf, math.nan, 1e304):
        assert dominance_k3(4096, 1e150, var, [], [350.0]).level == SEVERE
        assert dominance_k1(4096, math.nan, var, math.inf, [1.0], []).level == SEVERE


@pytest.mark.parametrize("bad", [25.0, 35.0, 60.0, 340.0])
def test_the_rest_beside_a_huge_token(bad):
    """The sums of the core give the mean without it, which the sum of all has lost."""
    d = normal(4096)
    clean = k3(d[1:]).mean()
    d[0] = bad
    x = k3(d)
    tails = (np.sort(-d)[-16:], np.sort(d)[-16:])
    alone = dominance_k3(4096, x.mean(), x.var(ddof=1), *tails)
    assert alone.level == SEVERE
    if bad > 30:
        assert math.isnan(alone.mean_without_top)
    else:
        assert alone.mean_without_top == pytest.approx(clean, rel=1e-2)
    core = (4095.0, k3(d[1:]).sum())
    exact = dominance_k3(4096, x.mean(), x.var(ddof=1), *tails, *core)
    assert exact.mean_without_top == pytest.approx(clean, rel=1e-12)
    assert exact._replace(mean_without_top=0.0) == alone._replace(mean_without_top=0.0)


def test_core_sums_with_unlisted_far_tokens_are_not_used():
    d = normal(4096)
    d[:40] = 40.0
    x = k3(d)
    tails = (np.sort(-d)[-16:], np.sort(d)[-16:])
    found = dominance_k3(4096, x.mean(), x.var(ddof=1), *tails, 4056.0, k3(d[40:]).sum())
    assert found.mean_without_top == pytest.approx(
        (x.sum() - found.tokens * k3(np.array(40.0))) / (4096 - found.tokens), rel=1e-9
    )


def test_thresholds_are_interpolated_in_log_n():
    for n, (warn, severe) in K3_THRESHOLDS.items():
        assert k3_thresholds(n) == (warn, severe)
    first, last = min(K3_THRESHOLDS), max(K3_THRESHOLDS)
    assert k3_thresholds(1) == k3_thresholds(first)
    assert k3_thresholds(1e9) == k3_thresholds(last)
    for level in (0, 1):
        rows = [row[level] for row in K3_THRESHOLDS.values()]
        expected = np.interp(np.log(9000), np.log(list(K3_THRESHOLDS)), rows)
        assert k3_thresholds(9000)[level] == pytest.approx(expected, rel=1e-12)


def test_how_many_tokens_a_rule_may_name():
    assert [most_tokens_k1(n) for n in (1, 799, 800, 4096, 10**6)] == [1, 1, 2, 10, 10]
    assert [most_tokens_k3(n) for n in (1, 256, 1024, 4096, 16_384, 10**6)] == [1, 1, 2, 3, 4, 5]


@given(
    hnp.arrays(np.float64, st.integers(64, 120), elements=st.floats(-60, 60)),
    st.randoms(use_true_random=False),
)
def test_any_values_give_numbers_in_range_whatever_their_order(d, random):
    assume(len(d) >= 64)
    shuffled = np.array(random.sample(d.tolist(), len(d)))
    for rule in ("k1", "k3"):
        found, again = judge(d, rule), judge(shuffled, rule)
        assert found.level in (0.0, WARN, SEVERE)
        assert 0 <= found.v <= 1
        assert 0 <= found.top_share <= 1
        assert again.top_share == pytest.approx(found.top_share, rel=1e-9)
        if rule == "k3":
            assert found.j >= 0 or found.j == pytest.approx(0, abs=1e-6)


@given(st.floats(1e-6, 1e9))
def test_the_benchmark_inverts_k3(value):
    d = right_tail(np.array([value]))
    assert d > 0
    assert k3(d)[0] == pytest.approx(value, rel=1e-5)


@pytest.fixture(scope="module")
def rates():
    """A small part of the benchmark: one pool a case, other seeds."""
    return measure(1, sizes=(256, 4096), clean=60, changed=12, more_pools={}, seed=900)


@pytest.mark.parametrize("size", [256, 4096])
@pytest.mark.parametrize(("estimator", "most"), [("k1", 0.02), ("k3", 0.04)])
def test_clean_batches_are_rarely_flagged(rates, estimator, most, size):
    """docs/dominance.md measures at most 2 % over many pools; this one draw of 2,500 contexts a
    case, which all its batches share, scatters."""
    assert rates.share(estimator, size, cases_of(), "clean", WARN) <= most
    light = cases_of("Gaussian noise", "temperature")
    assert rates.share(estimator, size, light, "clean", WARN) <= 0.02
    assert rates.share(estimator, size, cases_of(), "clean", SEVERE) <= 0.015


@pytest.mark.parametrize("size", [256, 4096])
@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_contamination_is_found(rates, estimator, size):
    """One to three tokens that move the mean by 3-5 clean standard errors; more at 5-8."""
    assert rates.share(estimator, size, cases_of(), (3, 5), WARN) >= 0.88
    assert rates.share(estimator, size, cases_of(), (5, 8), WARN) >= 0.97
    assert rates.share(estimator, size, cases_of(), (1, 2), WARN) <= 0.4


def test_odd_tokens_that_hold_half_of_k3_are_found():
    """The grid of docs/dominance.md, of one pool a case: 95 % in every cell of N, tokens, side."""
    found = measure_few(1, sizes=(256, 4096), batches_each=3, seed=40)
    assert {(cell.size, cell.tokens) for cell in found} >= {(256, 2), (4096, 16)}
    shares = {cell: found_share(by_case) for cell, by_case in found.items()}
    assert min(shares.values()) >= 0.9, shares
    assert sum(shares.values()) / len(shares) >= 0.97
