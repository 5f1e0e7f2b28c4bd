import math

import numpy as np
import pytest

from klmonitor.record import read_run
from klmonitor.record.rows import alert_to_row
from klmonitor.replay import backtest, replay
from klmonitor.rules import RuleSet
from klmonitor.testing import kl_series, reports, spike
from tests.helpers.reports import recorded_run


def noisy(steps=300, seed=0):
    rng = np.random.default_rng(seed)
    return 0.002 * np.exp(0.1 * rng.normal(size=steps))


def test_a_series_of_plain_numbers_is_judged_like_a_run():
    series = kl_series("flat", spike(5), steps=400, at=300, seed=4)
    live = RuleSet()
    raised = [alert for one in reports(series) for alert in live.judge(one).alerts]
    alerts = backtest(series.k3, se=series.k3_se, k1=series.k1, tokens=series.tokens)
    assert [(a.step, a.kind, a.severity, a.message) for a in alerts] == [
        (a.step, a.kind, a.severity, a.message) for a in raised
    ]
    assert [(alert.step, alert.kind) for alert in alerts] == [(300, "spike")]


def test_only_k3_is_needed_and_lists_will_do():
    k3 = noisy().tolist()
    k3[250] *= 10
    assert [(a.step, a.kind) for a in backtest(k3)] == [(250, "spike")]


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
@pytest.mark.parametrize("length", [1, 50])
def test_bad_values_fifty_steps_before_a_spike_do_not_hide_it(bad, length):
    k3 = noisy()
    k3[200 : 200 + length] = bad
    k3[250] *= 10
    alerts = [(alert.step, alert.kind) for alert in backtest(k3)]
    assert alerts[-1][::-1] == ("spike", 250)
    fired = [alert for alert in alerts if alert[1] == "nonfinite"]
    assert fired == ([] if bad == 0.0 else [(200, "nonfinite")])


@pytest.mark.parametrize("sign", [1, -1])
def test_an_excursion_of_k1_is_found_in_both_directions(sign):
    rng = np.random.default_rng(1)
    k1 = 0.002 + 0.001 * rng.normal(size=300)
    k1[250] = 0.002 + sign * 0.01
    alerts = backtest(noisy(), k1=k1)
    assert [(alert.step, alert.kind) for alert in alerts] == [(250, "k1_excursion")]


def test_rules_can_be_changed():
    k3 = noisy()
    k3[250] *= 1.9
    assert backtest(k3, rules={"preset": "quiet", "spike": {"ratio": 2}}) == []
    (alert,) = backtest(k3, rules={"limit": {"policy_ref": 0.003}})
    assert alert.kinds == ("limit", "spike")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"k3": [[1.0, 2.0]]}, r"k3 has shape \(1, 2\): give one value a step"),
        ({"k3": [1.0, 2.0], "se": [1.0]}, "se has 1 values and k3 has 2"),
        ({"k3": [1.0], "k1": 1.0}, r"k1 has shape \(\)"),
    ],
)
def test_arrays_that_do_not_fit_are_named(arrays, message):
    with pytest.raises(ValueError, match=message):
        backtest(**arrays)


def test_a_record_replays_the_alerts_of_the_live_run(tmp_path):
    live = recorded_run(tmp_path, 90)
    kinds = {kind for alert in live for kind in alert.kinds}
    assert kinds >= {"spike", "nonfinite", "dominance_k3"}
    replayed = replay(read_run(tmp_path).reports)
    assert [alert_to_row(alert) for alert in replayed] == [alert_to_row(alert) for alert in live]


def test_a_jump_from_exactly_zero_is_found():
    """Zeros stay out of every baseline: a run that was on the reference until then has none."""
    alerts = backtest([0.0] * 100 + [1.0] * 30)
    assert ("surge", 100) in {(alert.kind, alert.step) for alert in alerts}
    assert backtest([0.0] * 100 + [0.01] * 30) == []
    assert backtest([0.0] * 5 + [0.4] * 4) == []
