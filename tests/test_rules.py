import math

import pytest

from klmonitor.report import ExtremeToken, PairReport, Report
from klmonitor.rules import RuleSet
from klmonitor.testing import kl_series, reports, spike

QUIET = {"k3/se": 1e-5, "k1/se": 1e-5, "tokens": 4096.0, "sequences": 64.0, "nonfinite": 0.0}


def report(step, *, extremes=(), **values):
    """A report of one pair; underscores in names stand for slashes."""
    named = {name.replace("__", "/"): value for name, value in values.items()}
    pair = PairReport("policy_ref", {**QUIET, **named}, extremes=tuple(extremes))
    return Report(step=step, first_step=step, pairs={"policy_ref": pair})


def wobble(step):
    """A level of 0.01 nats with a spread of some per cent."""
    return 0.01 * math.exp(0.08 * math.sin(1.7 * step) + 0.05 * math.sin(0.31 * step))


def judged(rules, values, start=0):
    """Judge k3 values, one a step, and return the alerts."""
    return [
        alert
        for step, k3 in enumerate(values, start)
        for alert in rules.judge(report(step, k3__mean=k3, k1__mean=k3)).alerts
    ]


def kinds(alerts):
    return {alert.kind for alert in alerts}


def token(log_ratio, position=7):
    return ExtremeToken(
        pair="policy_ref",
        tail="left" if log_ratio < 0 else "right",
        log_ratio=log_ratio,
        log_q=-1.0,
        log_p=-1.0 + log_ratio,
        rank=0,
        micro_batch=0,
        sequence=3,
        position=position,
        token_id=11,
        text="secret",
    )


def test_a_tenfold_spike_is_found_at_once_and_is_critical():
    alerts = judged(RuleSet(), [wobble(t) for t in range(100)] + [0.1])
    (alert,) = [alert for alert in alerts if alert.kind == "spike"]
    assert (alert.step, alert.severity, alert.phase, alert.since) == (100, "critical", "open", 100)
    assert "nats" in alert.message
    assert alert.values["ratio"] == pytest.approx(10, rel=0.2)


def test_a_surge_is_found_before_there_is_a_baseline():
    alerts = judged(RuleSet(), [0.001 * (1 + t) for t in range(12)] + [0.5])
    assert [(alert.kind, alert.step) for alert in alerts] == [("surge", 12)]


def test_a_start_up_ramp_raises_nothing():
    alerts = judged(RuleSet(), [0.34 * (1 - math.exp(-(t + 1) / 60)) for t in range(60)])
    assert alerts == []


def test_dominance_names_the_token_and_the_other_estimator():
    rules = RuleSet()
    values = {
        "k1/mean": 0.17,
        "k1/mean_without_top": 0.012,
        "k3/mean": 0.02,
        "dominance/k1/level": 2.0,
        "dominance/k1/top_share": 0.6,
        "dominance/k1/v": 0.97,
        "dominance/k1/j": 9.0,
        "dominance/k3/level": 0.0,
        "tokens": 256.0,
    }
    judgement = rules.judge(report(5, extremes=[token(-40.0), token(1.0, 2)], **values))
    (alert,) = judgement.alerts
    assert alert.kind == "dominance_k1"
    assert alert.severity == "warn"
    assert alert.tokens[0].position == 7
    assert alert.tokens[0].text is None
    assert "0.17 nats" in alert.message
    assert "0.012 nats" in alert.message
    assert "position 7" in alert.message
    assert alert.believe.startswith("k3")
    assert "secret" not in str(alert)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_step_fires_and_hides_no_later_spike(value):
    rules = RuleSet()
    alerts = judged(rules, [wobble(t) for t in range(100)] + [value])
    assert [(alert.kind, alert.severity) for alert in alerts] == [("nonfinite", "critical")]
    after = judged(rules, [wobble(t) for t in range(101, 151)] + [0.1], start=101)
    assert [(alert.kind, alert.step) for alert in after] == [("spike", 151)]


def test_the_score_is_the_spike_rules_own_z():
    rules = RuleSet()
    series = list(reports(kl_series("flat", spike(10), steps=60, at=50)))
    scores = [rules.judge(one).scores["policy_ref"] for one in series]
    assert all(math.isnan(z) for z in scores[:20])
    assert scores[50] > 5
    assert max(scores[20:50]) < 5


def test_evaluation_is_not_part_of_the_series():
    rules = RuleSet()
    judged(rules, [wobble(t) for t in range(50)])
    before = rules.state_dict()
    spiked = report(50, k3__mean=1.0)
    judgement = rules.judge(Report(step=50, pairs=spiked.pairs, phase="eval"))
    assert judgement.alerts == ()
    assert rules.state_dict() == before
