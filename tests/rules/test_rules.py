import json
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from klmonitor.notify.message import alert_markdown
from klmonitor.record.rows import alert_from_row, alert_to_row
from klmonitor.report import Alert, PairReport, Report
from klmonitor.rules import RuleSet
from klmonitor.testing import BATCHES, batch_report, kl_series, reports, spike, token_batch
from tests.helpers.rulecases import carried, found, judged, kinds, ordinary, report, token, wobble

K1_BY_ONE_TOKEN = {
    "k1__mean": 0.17,
    "k1__mean_without_top": 0.012,
    "k3__mean": 0.02,
    "dominance__k1__level": 2.0,
    "dominance__k1__top_share": 0.6,
    "dominance__k1__v": 0.97,
    "dominance__k1__j": 9.0,
    "dominance__k3__level": 0.0,
    "tokens": 256.0,
}


# --- spike, shift, surge ---------------------------------------------------------------------
def test_a_tenfold_spike_is_found_at_once_and_is_critical():
    alerts = judged(RuleSet(), [*ordinary(100), 0.1])
    (alert,) = [alert for alert in alerts if alert.kind == "spike"]
    assert (alert.step, alert.severity, alert.phase, alert.since) == (100, "critical", "open", 100)
    assert "0.1 nats" in alert.message
    assert alert.values["ratio"] == pytest.approx(10, rel=0.2)


def test_a_spike_that_is_one_token_is_a_warning_and_says_so():
    rules = RuleSet()
    judged(rules, ordinary(100))
    one = carried(100, 11.6, without=0.011, tokens=1.0, extremes=[token(8.0)], k1__mean=0.0)
    (alert,) = rules.judge(one).alerts
    assert alert.kind == "spike"
    assert set(alert.kinds) == {"spike", "surge", "dominance_k3"}
    assert alert.severity == "warn"
    assert "without 1 token it is 0.011 nats, no spike" in alert.message
    assert alert.believe.startswith("k1")
    assert alert.means.startswith("q ")


def test_a_level_that_doubles_is_told_and_is_then_the_level():
    rules = RuleSet()
    alerts = judged(rules, [*ordinary(120), *ordinary(200, 120, level=0.02)])
    assert kinds(alerts) <= {"spike", "shift"}
    assert {alert.since if alert.phase == "worse" else alert.step for alert in alerts} == {120}
    again = judged(rules, ordinary(50, 320, level=0.04), start=320)
    assert {alert.since if alert.phase == "worse" else alert.step for alert in again} == {320}


def test_a_surge_is_found_before_there_is_a_baseline():
    alerts = judged(RuleSet(), [*(0.001 * (1 + t) for t in range(12)), 0.5])
    assert found(alerts) == [("surge", 12)]


def test_tiny_kl_never_surges():
    alerts = judged(RuleSet(), [*(1e-6 * (1 + t) for t in range(12)), 1e-3])
    assert "surge" not in {alert.kind for alert in alerts}


@pytest.mark.parametrize("climb", [6.0, 3.0])
def test_a_start_up_from_nothing_raises_nothing(climb):
    series = [0.3 * math.exp(-climb * math.exp(-t / 20)) * (wobble(t) / 0.01) for t in range(200)]
    assert judged(RuleSet(), [0.0, *series]) == []


def test_the_jump_of_the_demo_is_found_on_its_ramp():
    ramp = [0.34 * (1 - math.exp(-(t + 1) / 25)) * (wobble(t) / 0.01) for t in range(60)]
    jump = [1.2, 2.3, 3.9, *(3.5 * wobble(t) / 0.01 for t in range(17))]
    alerts = judged(RuleSet(), [0.0, *ramp, *jump], k3__se=0.02, k1__se=0.05)
    assert min(alert.step for alert in alerts) == 61
    assert "spike" in {alert.kind for alert in alerts if alert.step == 61}


def test_the_score_is_the_spike_rules_own_z():
    rules = RuleSet()
    series = list(reports(kl_series("flat", spike(10), steps=60, at=50)))
    scores = [rules.judge(one).scores["policy_ref"] for one in series]
    assert all(math.isnan(z) for z in scores[:15])
    assert scores[50] > 5
    assert max(scores[15:50]) < 4.8


# --- drift, runaway, limit -------------------------------------------------------------------
def test_a_drift_of_two_in_two_hundred_steps_is_found():
    drifting = [wobble(t, 0.01 * (1 + min(max(t - 500, 0), 200) / 200)) for t in range(800)]
    alerts = judged(RuleSet(), drifting)
    assert [alert.kind for alert in alerts if alert.kind == "drift"] == ["drift"]
    assert all(alert.step > 500 for alert in alerts)


def test_a_runaway_is_critical_within_sixty_steps():
    growing = [wobble(t, 0.01 * 2 ** (max(t - 150, 0) / 20)) for t in range(230)]
    alerts = judged(RuleSet(), growing)
    runaways = [alert for alert in alerts if "runaway" in alert.kinds]
    assert 150 < runaways[0].step < 215
    assert "critical" in {alert.severity for alert in runaways if alert.step < 215}
    assert runaways[0].values["doubling_steps"] == pytest.approx(20, rel=0.3)


def test_a_limit_of_ones_own_holds_for_its_pair_only():
    high = [0.2] * 5
    assert judged(RuleSet(), high) == []
    rules = RuleSet({"limit": {"policy_ref": 0.1}})
    assert found(judged(rules, high)) == [("limit", 0)]
    other = report(9, pair="rollout_old", k3__mean=0.2)
    assert rules.judge(other).alerts == ()


# --- k1 --------------------------------------------------------------------------------------
@pytest.mark.parametrize("sign", [1, -1])
def test_a_ten_sigma_excursion_of_k1_is_found_in_either_direction(sign):
    rng = np.random.default_rng(3)
    k1 = 0.002 + 0.001 * rng.normal(size=121)
    k1[120] = 0.002 + sign * 0.01
    rules = RuleSet({"k1_negative": False})  # which has its say of one far below 0
    alerts = [
        alert
        for step, value in enumerate(k1)
        for alert in rules.judge(report(step, k3__mean=wobble(step, 0.002), k1__mean=value)).alerts
    ]
    assert found(alerts) == [("k1_excursion", 120)]


def test_k1_that_rises_with_k3_is_no_excursion():
    alerts = judged(RuleSet(), [*ordinary(100), 0.1])
    assert "k1_excursion" not in {alert.kind for alert in alerts}


def negative_k1(on_policy):
    rng = np.random.default_rng(5)
    rules = RuleSet()
    return [
        alert
        for step in range(120)
        for alert in rules.judge(
            report(
                step,
                k3__mean=wobble(step),
                k1__mean=-0.003 + 0.002 * rng.normal(),
                k1__se=0.002,
                on_policy=on_policy,
            )
        ).alerts
    ]


def test_k1_that_stays_negative_is_found_where_q_drew_the_tokens():
    assert found(negative_k1(1.0)) == [("k1_negative", 50)]
    assert negative_k1(0.0) == []


# --- dominance -------------------------------------------------------------------------------
def test_dominance_names_the_token_and_the_other_estimator():
    judgement = RuleSet().judge(
        report(5, extremes=[token(-40.0), token(1.0, 2)], **K1_BY_ONE_TOKEN)
    )
    (alert,) = judgement.alerts
    assert (alert.kind, alert.severity) == ("dominance_k1", "warn")
    assert alert.tokens[0].position == 7
    assert alert.tokens[0].text is None
    for part in ("1 token of 256", "60 %", "0.17 nats", "0.012 nats", "position 7"):
        assert part in alert.message
    assert alert.believe.startswith("k3")
    assert "secret" not in str(alert)


def test_where_both_are_dominated_neither_is_believed():
    both = {**K1_BY_ONE_TOKEN, "dominance__k3__level": 2.0, "dominance__k3__j": 40.0}
    (alert,) = RuleSet().judge(report(5, extremes=[token(-40.0)], **both)).alerts
    assert alert.kinds == ("dominance_k1", "dominance_k3")
    assert alert.believe.startswith("neither")
    assert alert.means.startswith("p finds")


def test_dominance_that_is_the_runs_own_habit_is_not_news():
    rng = np.random.default_rng(0)
    rules = RuleSet()
    alerts = [
        alert
        for step in range(300)
        for alert in rules.judge(
            report(step, **{**K1_BY_ONE_TOKEN, "dominance__k1__j": 5 + rng.random()})
        ).alerts
    ]
    assert [alert.step for alert in alerts if alert.kind == "dominance_k1"] == [0]


# --- integrity -------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_step_fires_and_hides_no_later_spike(value):
    rules = RuleSet()
    alerts = judged(rules, [*ordinary(100), value])
    assert [(alert.kind, alert.severity) for alert in alerts] == [("nonfinite", "critical")]
    after = judged(rules, [*ordinary(50, 101), 0.1], start=101)
    assert found(after) == [("spike", 151)]


def test_fifty_exact_zeros_are_told_and_hide_no_later_spike():
    alerts = judged(RuleSet(), [*ordinary(100), *([0.0] * 50), 0.1], k1__mean=0.01)
    assert found(alerts) == [("fall", 101), ("spike", 150)]


def test_few_non_finite_tokens_warn_and_many_are_critical():
    few = RuleSet().judge(report(0, k3__mean=0.01, nonfinite=3.0)).alerts
    many = RuleSet().judge(report(0, k3__mean=0.01, nonfinite=300.0)).alerts
    all_of_them = RuleSet().judge(report(0, tokens=0.0, nonfinite=300.0)).alerts
    assert [alert.severity for alert in (*few, *many, *all_of_them)] == [
        "warn",
        "critical",
        "critical",
    ]
    assert "3 of 4099" in few[0].message


def test_the_gap_is_judged_only_where_q_drew_the_tokens():
    gap = {"k3__mean": 0.01, "k1__mean": 0.03, "gap": -0.02, "gap_z": -13.0}
    (alert,) = RuleSet().judge(report(0, **gap)).alerts
    assert (alert.kind, alert.severity) == ("gap", "critical")
    assert alert.believe.startswith("k1")
    assert RuleSet().judge(report(0, **gap, on_policy=0.0)).alerts == ()


def test_a_small_gap_in_every_step_adds_up():
    rules = RuleSet()
    gap = {"k3__mean": 0.01, "k1__mean": 0.007, "gap": 0.003, "gap_z": 3.0}
    steps = [alert.step for step in range(8) for alert in rules.judge(report(step, **gap)).alerts]
    assert steps == [2]  # 3 sqrt(3) > 5


def test_low_precision_matters_where_k3_cannot_be_resolved():
    low = [
        RuleSet().judge(report(0, k3__mean=k3, low_precision=1.0)).alerts[0].severity
        for k3 in (1e-2, 1e-5)
    ]
    assert low == ["info", "warn"]


def test_a_burst_of_outliers_is_found():
    rng = np.random.default_rng(1)
    rules = RuleSet()
    alerts = []
    for step in range(121):
        rate = 1e4 * rng.poisson(20 if step < 120 else 200) / 4096
        one = report(step, k3__mean=wobble(step), **{"outliers/rate": rate})
        alerts += rules.judge(one).alerts
    assert found(alerts) == [("outlier_rate", 120)]


# --- no data ---------------------------------------------------------------------------------
def test_a_pair_that_falls_silent_is_told_once():
    rules = RuleSet()
    judged(rules, ordinary(30))
    alerts = [
        alert
        for step in range(30, 200)
        for alert in rules.judge(report(step, pair="old_policy", k3__mean=wobble(step))).alerts
    ]
    assert [(a.kind, a.pair, a.step) for a in alerts] == [("no_data", "policy_ref", 79)]
    ended = rules.judge(report(200, k3__mean=0.01)).ended
    assert [alert.kind for alert in ended] == ["no_data"]


def steps_without(has_data, steps=400):
    """Alerts about silence of a run of two pairs that has data at some steps."""
    rules, alerts = RuleSet(), []
    for step in range(steps):
        pairs = {}
        if has_data(step):
            for name in ("policy_ref", "old_policy"):
                pairs |= report(step, pair=name, k3__mean=wobble(step)).pairs
        alerts += rules.judge(Report(step=step, pairs=pairs)).alerts
    return [(a.pair, a.step, a.message) for a in alerts if a.kind == "no_data"]


def test_a_run_without_tokens_is_told_at_the_fifth_step():
    """Once, of the run and not of each pair."""
    (found,) = steps_without(lambda step: step < 30)
    assert found[:2] == (None, 34)
    assert found[2] == "no tokens for 5 steps, of any pair; every step before had some"
    assert steps_without(lambda step: step < 30 or step >= 34) == []
    assert [at for _, at, _ in steps_without(lambda step: step < 19)] == [68], "too short to know"


def test_a_run_with_pauses_is_told_after_a_pause_like_none():
    """Longer than five steps and three times the longest."""
    (found,) = steps_without(lambda step: step < 200 and step % 10 not in (7, 8))
    assert found[:2] == (None, 200 + 5 + 3 * 2 - 1)
    assert found[2].endswith("its longest pause was 2 steps")


@pytest.mark.parametrize("every", [*range(1, 12), 20, 40])
def test_a_run_with_data_now_and_then_is_never_silent(every):
    assert steps_without(lambda step: step % every == 0) == []
    assert steps_without(lambda step: step % every == every - 1) == []


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
def test_nor_is_one_with_data_by_chance(share):
    rng = np.random.default_rng(3)
    assert steps_without(lambda _: rng.random() < share, steps=1000) == []


def test_a_state_from_before_knows_no_pause_and_waits():
    rules = RuleSet()
    judged(rules, ordinary(30))
    state = rules.state_dict()
    for silence in state["silence"].values():
        del silence["seen"]
    del state["silence"][""]
    resumed = RuleSet()
    resumed.load_state_dict(state)
    told = [
        (alert.pair, alert.step)
        for step in range(30, 200)
        for alert in resumed.judge(Report(step=step, pairs={})).alerts
    ]
    assert told == [(None, 79)]


def test_a_pair_that_comes_every_forty_steps_is_not_silent():
    rules = RuleSet()
    alerts = []
    for step in range(400):
        one = report(step, k3__mean=0.01) if step % 40 == 0 else Report(step=step, pairs={})
        alerts += rules.judge(one).alerts
    assert alerts == []


def test_a_run_that_never_has_data_is_told():
    rules = RuleSet()
    empty = PairReport("policy_ref", {"tokens": 0.0, "nonfinite": 0.0})
    alerts = [
        alert
        for step in range(80)
        for alert in rules.judge(Report(step=step, pairs={"policy_ref": empty})).alerts
    ]
    assert [(alert.kind, alert.pair) for alert in alerts] == [("no_data", None)]
    assert [alert.pair for alert in rules.judge(report(80, k3__mean=0.01)).ended] == [None]


# --- a user's own rule -----------------------------------------------------------------------
def few_tokens(one: Report) -> str | None:
    return "hardly a token" if one.pairs["policy_ref"].tokens < 100 else None


def whole_alert(one: Report) -> Alert | None:
    return Alert(
        step=-1,
        kind="ignored",
        severity="critical",
        pair="policy_ref",
        message="as I said",
        action="run",
        values={"x": 1.0},
    )


def broken(one: Report) -> str:
    raise KeyError("no such pair")


def test_own_rules_have_episodes_and_cannot_break_the_others():
    rules = RuleSet({"own": [few_tokens, whole_alert, broken]})
    alerts = judged(rules, [0.01] * 3, tokens=5.0) + judged(rules, [math.nan], start=3)
    assert found(alerts) == [
        ("few_tokens", 0),
        ("whole_alert", 0),
        ("broken", 0),
        ("nonfinite", 3),
    ]
    assert alerts[1].severity == "critical"
    assert alerts[1].action == "run"
    assert "KeyError" in alerts[2].message


# --- episodes --------------------------------------------------------------------------------
def test_an_episode_opens_gets_worse_and_ends_once():
    rules = RuleSet({"surge": False})
    phases = []
    for step, k3 in enumerate([*ordinary(100), 0.03, 0.03, 0.12, *ordinary(10, 103)]):
        judgement = rules.judge(report(step, k3__mean=k3, k1__mean=k3))
        phases += [
            (alert.phase, alert.severity, alert.step, alert.since)
            for alert in (*judgement.alerts, *judgement.ended)
            if alert.kind == "spike"
        ]
    assert phases == [
        ("open", "warn", 100, 100),
        ("worse", "critical", 102, 100),
        ("end", "info", 103, 100),
    ]


def test_a_warning_never_holds_a_later_one_back():
    series = [*ordinary(100), 0.03, *ordinary(9, 101), 0.03, *ordinary(9, 111), 0.15]
    alerts = [alert for alert in judged(RuleSet(), series) if alert.kind == "spike"]
    assert [(alert.step, alert.severity) for alert in alerts] == [
        (100, "warn"),
        (110, "warn"),
        (120, "critical"),
    ]


def test_the_same_kind_opens_again_after_its_cool_down():
    series = [*ordinary(100), 0.03, *ordinary(60, 101), 0.03]
    alerts = [alert for alert in judged(RuleSet(), series) if alert.kind == "spike"]
    assert [alert.step for alert in alerts] == [100, 161]
    series = [*ordinary(100), 0.03, *ordinary(30, 101), 0.029]
    calm = judged(RuleSet({"spike": {"cooldown": 50}}), series)
    assert [alert.step for alert in calm if alert.kind == "spike"] == [100]


def test_nine_thousand_noisy_steps_use_up_no_allowance():
    rng = np.random.default_rng(0)
    noisy = 0.01 * np.exp(rng.standard_t(3, size=9000) * 0.5)
    rules = RuleSet()
    before = judged(rules, noisy)
    assert before  # it does raise alerts
    after = judged(rules, [*[0.01] * 20, 40.0, math.nan], start=9000)  # 40x is its habit
    assert [alert.step for alert in after if "spike" in alert.kinds] == [9020]
    assert ("nonfinite", 9021) in found(after)


# --- laws ------------------------------------------------------------------------------------
METRICS = [
    *("k3/mean", "k3/se", "k1/mean", "k1/se", "tokens", "sequences", "nonfinite", "on_policy"),
    *("gap", "gap_z", "low_precision", "outliers/rate", "k1/mean_without_top"),
    *("k3/mean_without_top", "dominance/k1/level", "dominance/k1/j", "dominance/k1/v"),
    *("dominance/k1/top_share", "dominance/k3/level", "dominance/k3/j", "dominance/k3/tokens"),
]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.dictionaries(st.sampled_from(METRICS), st.floats(), max_size=len(METRICS)),
        min_size=1,
        max_size=45,
    )
)
@example(rows=[{"tokens": 2.225073858507e-311, "k3/mean": 0.0, "outliers/rate": 0.0}])
def test_no_report_can_make_the_rules_raise_or_forget_json(rows):
    rules = RuleSet({"limit": {"policy_ref": 0.1}})
    judged(rules, ordinary(40))
    for step, values in enumerate(rows, 40):
        pair = PairReport("policy_ref", values, extremes=(token(-3.0),))
        judgement = rules.judge(Report(step=step, pairs={"policy_ref": pair}))
        for alert in (*judgement.alerts, *judgement.ended):
            assert alert.text()
            json.loads(json.dumps(alert_to_row(alert), allow_nan=False))
    json.dumps(rules.state_dict(), allow_nan=False)


def test_evaluation_is_not_part_of_the_series():
    rules = RuleSet()
    judged(rules, ordinary(50))
    before = rules.state_dict()
    spiked = report(50, k3__mean=1.0)
    judgement = rules.judge(Report(step=50, pairs=spiked.pairs, phase="eval"))
    assert judgement.alerts == ()
    assert rules.state_dict() == before


# --- what is written -------------------------------------------------------------------------
def test_an_alert_reads_well_in_text_markdown_and_json():
    (alert,) = RuleSet().judge(report(5, extremes=[token(-40.0)], **K1_BY_ONE_TOKEN)).alerts
    text, markdown = alert.text(), alert_markdown(alert)
    for part in (alert.message, alert.believe, alert.action, alert.means, alert.source):
        assert part
        assert part in text
        assert part in markdown
    assert "| -40 | -1 | -41 | 11 | micro-batch 0, sequence 3, position 7 |" in markdown
    assert alert_from_row(json.loads(json.dumps(alert_to_row(alert), allow_nan=False))) == alert
    assert alert_from_row(alert_to_row(alert)) == alert


EXPECTED = {
    "clean": set(),
    "collapse": {"gap"},
    "top_p": set(),
    "stale": set(),  # one batch of 6,000 tokens cannot tell, see benchmarks/rules.py
    "catastrophe": {"dominance_k1"},
    "one_token_left": {"dominance_k1", "dominance_k3"},
    "one_token_right": {"dominance_k3"},
    "nan_storm": {"nonfinite"},
}


@pytest.mark.parametrize("name", BATCHES)
def test_each_bad_batch_raises_its_alert(name):
    batch = token_batch(name, sequences=64, length=128, vocabulary=128, seed=3)
    alerts = RuleSet().judge(batch_report(batch)).alerts
    assert kinds(alerts) == EXPECTED[name]


def test_a_token_that_is_hardly_odd_is_no_news():
    """Of a policy that is sure of nearly all tokens a small d is most of its KL."""
    for size, told in ((0.013, []), (0.3, ["dominance_k3"])):
        rules = RuleSet()
        for step in range(20):
            rules.judge(report(step, k3__mean=wobble(step, 1e-6)))
        odd = carried(20, 2e-6, 1e-6, 1.0, extremes=[token(size)])
        assert [alert.kind for alert in rules.judge(odd).alerts] == told


def test_a_share_of_outliers_that_grows_with_kl_is_no_burst():
    rules, shares = RuleSet(), [0.0] * 60 + [3.0 * step for step in range(1, 120)]
    for step, share in enumerate(shares):
        assert not rules.judge(report(step, k3__mean=0.01, outliers__rate=share)).alerts
