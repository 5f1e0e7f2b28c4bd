"""The absolute norm, what falls, what is wrong from the start, and what a critical alert needs."""

import math

import numpy as np
import pytest

from klmonitor.replay import backtest
from klmonitor.report import Report
from klmonitor.rules import RuleSet
from tests.helpers.rulecases import found, judged, kinds, ordinary, report, wobble


def raised(reports, rules="default"):
    judge = RuleSet(rules).judge
    return [alert for one in reports for alert in judge(one).alerts]


def told(alerts):
    return [(alert.step, alert.kind, alert.severity) for alert in alerts]


# --- the absolute norm -----------------------------------------------------------------------
def test_five_nats_in_twenty_five_steps_are_told_before_the_fifteenth():
    rise = [5 * min(step, 25) / 25 for step in range(1, 41)]
    without_tokens = backtest([0.0, *rise])
    assert told(without_tokens)[:2] == [(4, "limit", "warn"), (13, "limit", "critical")]
    with_tokens = judged(RuleSet(), rise, start=1)
    assert told(with_tokens)[:2] == [(4, "limit", "warn"), (11, "limit", "critical")]


def test_three_nats_from_the_first_step_are_critical_by_the_third():
    assert told(backtest([3.1, 2.9, 3.0, 3.2])) == [(2, "limit", "critical")]


def test_one_huge_value_is_critical_at_once():
    start = [0.001 * step for step in range(8)]
    assert told(backtest([*start, 3400.0, 0.02]))[0] == (8, "limit", "critical")
    assert backtest([*start, 19.0, 0.02]) == []


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_with_token_data_two_nats_in_one_step_are_critical(estimator):
    values = {"k1__mean": 0.1, "k3__mean": 0.1, f"{estimator}__mean": 2.5}
    (alert,) = raised([report(0, **values)])
    assert told([alert]) == [(0, "limit", "critical")]
    assert f"{estimator} is 2.5 nats per token: the norm is 2 nats" in alert.message


def test_a_token_that_carries_k3_makes_no_norm_critical():
    carried = {
        "k3__mean": 11.6,
        "k1__mean": 0.01,
        "k3__mean_without_top": 0.011,
        "dominance__k3__level": 2.0,
        "dominance__k3__j": 900.0,
    }
    (alert,) = raised([report(0, **carried)])
    assert (alert.kind, alert.severity) == ("dominance_k3", "warn")


def test_an_engine_has_a_norm_of_its_own():
    levels = [0.005] * 5 + [0.02] * 5 + [0.08] * 5
    reports = [
        report(step, pair="rollout_old", k3__mean=wobble(step, k3), k1__mean=k3, on_policy=0.0)
        for step, k3 in enumerate(levels)
    ]
    of_norm = [a for a in raised(reports) if "limit" in a.kinds]
    assert [(a.severity, a.phase) for a in of_norm] == [("info", "open"), ("warn", "worse")]
    assert [a.step for a in of_norm] == [6, 11]


def test_the_norm_can_be_set_and_switched_off():
    high = [3.0] * 10
    assert backtest(high, rules={"limit": False}) == []
    assert backtest(high, rules={"limit": {"warn": 4, "critical": 8}}) == []
    assert backtest(high, rules={"limit": {"policy_ref": 5}}) == []


# --- what falls ------------------------------------------------------------------------------
@pytest.mark.parametrize("low", [0.0, 0.0003])
def test_kl_that_falls_to_nothing_is_told_within_six_steps(low):
    series = [*ordinary(60, level=0.04), *(low * wobble(t) / 0.01 for t in range(30))]
    alert, *others = judged(RuleSet(), series)
    assert alert.kind == "fall"
    assert found(others) == ([("identical", 70)] if low == 0 else [])
    assert 60 <= alert.step <= 65
    usual = np.median([wobble(step, 0.04) for step in range(28, 59)])
    assert alert.values["usual"] == pytest.approx(usual, rel=0.05)
    assert f"{alert.values['usual']:.3g} nats" in alert.message
    assert ("exactly 0" in alert.message) == (low == 0)


def test_after_a_fall_the_run_starts_up_anew():
    again = [wobble(t, 0.04 * math.exp(-6 * max(1 - t / 12, 0) ** 1.6)) for t in range(60)]
    alerts = judged(RuleSet(), [*ordinary(60, level=0.04), *again])
    assert found(alerts) == [("fall", 61)]


def test_a_reference_that_is_synchronised_on_purpose_is_no_fall():
    rules, alerts = RuleSet(), []
    for step in range(200):
        since = step % 64 if step > 63 else step + 200
        one = report(step, k3__mean=wobble(step, 0.04 * (1 - math.exp(-(since + 0.1) / 6))))
        sync = {"run/reference_sync": float(step > 63 and since == 0)}
        alerts += rules.judge(Report(step=step, pairs=one.pairs, run_values=sync)).alerts
    assert alerts == []


@pytest.mark.parametrize("what", ["tokens", "length"])
def test_tokens_and_lengths_that_fall_to_a_tenth_are_told(what):
    reports = []
    for step in range(80):
        low = step == 70
        values = {"k3__mean": wobble(step), "k1__mean": wobble(step)}
        values["tokens"] = 4000.0 * wobble(step) / 0.01 * (0.09 if low else 1)
        values["sequences"] = 64.0 if what == "length" or not low else 5.0
        reports.append(report(step, **values))
    (alert,) = raised(reports)
    assert told([alert]) == [(70, "token_drop", "warn")]
    assert f"{reports[70].pairs['policy_ref'].tokens:.3g} tokens where" in alert.message
    assert ("tokens per sequence" in alert.message) == (what == "length")


# --- from the first step on ------------------------------------------------------------------
def begun(step, **values):
    """A report of a step whose place in the run is known."""
    one = report(step, **{key: v for key, v in values.items() if not key.startswith("run_")})
    run = {f"run/{key[4:]}": v for key, v in values.items() if key.startswith("run_")}
    return Report(step=step, pairs=one.pairs, run_values=run)


def test_kl_before_the_first_update_is_told_and_its_causes_named():
    (alert,) = raised([begun(1, k3__mean=0.066, k1__mean=0.05, k3__se=0.002, run_step_of_run=0)])
    assert told([alert]) == [(1, "nonzero_start", "warn")]
    assert "0.066 nats per token before the first update" in alert.message
    for cause in ("quantised base", "adapters that start", "dropout", "another checkpoint"):
        assert cause in alert.means


@pytest.mark.parametrize(
    "values",
    [
        {"k3__mean": 0.066, "run_step_of_run": 1},
        {"k3__mean": 0.066, "run_step_of_run": 0, "run_updates": 4},
        {"k3__mean": 5e-4, "run_step_of_run": 0},
        {"k3__mean": 0.066, "k3__se": 0.03, "run_step_of_run": 0},
        {"k3__mean": 5e-4, "low_precision": 1.0, "run_step_of_run": 0},
        {"k3__mean": 5e-7, "k3__se": 0.0, "run_step_of_run": 0, "run_bits": 32},
    ],
)
def test_a_start_that_may_be_at_zero_is_not_told(values):
    assert "nonzero_start" not in kinds(raised([begun(1, **values)]))


def test_in_32_bits_a_start_at_little_more_than_zero_is_told():
    fine = {"k3__mean": 1e-5, "k3__se": 1e-7, "run_step_of_run": 0, "run_bits": 32}
    assert kinds(raised([begun(1, **fine)])) == {"nonzero_start"}
    several = {**fine, "run_updates": 4, "pair": "old_ref"}
    assert kinds(raised([begun(1, **several)])) == {"nonzero_start"}, "from before all four"


def test_a_gap_under_dropout_names_it():
    apart = {"k3__mean": 0.03, "k1__mean": 0.01, "gap": 0.02, "gap_z": 13.0, "run_dropout": 0.1}
    (alert,) = [a for a in raised([begun(1, **apart)]) if a.kind == "gap"]
    assert alert.means.startswith("dropout of up to 0.1 is active in the policy")


def test_without_counted_updates_a_level_that_was_there_from_the_start_informs():
    high = [wobble(step, 0.066) for step in range(60)]
    (alert,) = judged(RuleSet(), high)
    assert told([alert]) == [(20, "nonzero_start", "info")]
    rise = [0.066 * (1 - math.exp(-step / 5)) for step in range(1, 60)]
    assert judged(RuleSet(), rise) == []


def test_sides_that_are_identical_over_ten_updates_are_told():
    alike = {"k3__mean": 0.0, "k1__mean": 0.0, "identical": 1.0}
    assert found(raised([begun(s, **alike) for s in range(1, 120)])) == [("identical", 11)]
    warm_up = [begun(s, **alike, run_learning_rate=0.0) for s in range(40)]
    assert raised(warm_up) == []
    fewer = [begun(s, **alike, run_learning_rate=1e-6, run_updates=s // 4) for s in range(60)]
    assert found(raised(fewer)) == [("identical", 40)]


def test_a_negative_beta_or_penalty_is_named():
    (of_beta,) = raised([begun(1, k3__mean=0.01, penalty__mean=-0.02, run_beta=-2.0)])
    assert (of_beta.kind, of_beta.severity) == ("negative_penalty", "warn")
    assert "beta is -2" in of_beta.message
    assert "-0.02 nats" in of_beta.message
    paid = {"k3__mean": 0.01, "k1__mean": 0.01, "penalty__mean": -10.0, "penalty__se": 0.1}
    assert "-10 nats" in raised([begun(1, **paid)])[0].message
    ordinary_k1 = {"k3__mean": 0.01, "k1__mean": -0.01, "k1__se": 0.01, "penalty__mean": -0.001}
    assert raised([begun(1, **ordinary_k1)]) == []


# --- what a critical alert needs -------------------------------------------------------------
@pytest.mark.parametrize("few", [{"tokens": 5.0}, {"sequences": 1.0}, {"clusters": 1.0}])
def test_no_critical_alert_rests_on_a_handful_of_tokens(few):
    rules = RuleSet()
    judged(rules, ordinary(60))
    (alert,) = [a for a in judged(rules, [3.0], start=60, **few) if "surge" in a.kinds]
    assert alert.severity == "warn"
    name, number = next(iter(few.items()))
    assert f"{number:.0f} {name.removesuffix('s')}" in alert.message
    assert "a warning only" in alert.message
    again = RuleSet()
    judged(again, ordinary(60))
    assert judged(again, [3.0], start=60)[0].severity == "critical"


# --- a pair in its own time ------------------------------------------------------------------
def test_a_pair_seen_every_tenth_step_has_its_baseline_in_its_own_time():
    rules, alerts = RuleSet(), []
    for step in range(400):
        value = 0.1 if step == 300 else wobble(step // 10)
        one = report(step, k3__mean=value, k1__mean=value)
        pairs = one.pairs if step % 10 == 0 else {}
        alerts += rules.judge(Report(step=step, pairs=pairs)).alerts
    assert [alert.step for alert in alerts] == [300]
