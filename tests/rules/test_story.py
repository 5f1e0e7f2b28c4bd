"""One event is one alert with continuations, and every number in a text is that of the record."""

import math
import re

import numpy as np
import pytest

from klmonitor.hooks.actions import Actions
from klmonitor.replay.scoring import Event
from klmonitor.report import Alert
from klmonitor.rules import RuleSet
from tests.helpers.rulecases import judged, ordinary, wobble

NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def test_what_several_rules_find_of_a_step_is_one_alert():
    (alert,) = judged(RuleSet(), [*ordinary(100), 0.4])
    assert alert.kind == alert.kinds[0]
    assert {"spike", "surge"} <= set(alert.kinds)
    assert alert.message.count("policy_ref") == 1


def test_an_event_is_one_alert_and_continuations():
    series = [*ordinary(60), 0.1, 0.3, 0.7, 0.7, 0.7, 0.7]
    alerts = judged(RuleSet(), series)
    assert alerts[0].phase == "open"
    assert {alert.phase for alert in alerts[1:]} == {"worse"}
    assert {alert.since for alert in alerts} == {60}
    rising = alerts[1]
    assert "still rising: k3 is 0.3 nats per token" in rising.message
    assert f"{0.3 / alerts[0].values['expected']:.3g}x" in rising.message
    assert "before step 60" in rising.message


def swinging(at, factor, period=4, steps=120):
    """Old policy over the updates of a batch: from 0 up in each; larger from a step on."""
    rng = np.random.default_rng(1)
    k3 = 0.0015 * ((np.arange(steps) % period + 0.3) / (period - 0.7)) ** 2
    k3 *= np.exp(0.1 * rng.normal(size=steps))
    k3[at:] *= factor
    return k3


def test_a_run_that_swings_is_held_against_its_peaks_too():
    k3 = swinging(64, 100)
    told = [a for a in judged(RuleSet(), k3.tolist()) if "still rising" in a.message]
    assert told
    for alert in told:
        largest, base = k3[alert.since - 20 : alert.since].max(), alert.values["expected"]
        assert f"{k3[alert.step] / largest:.3g}x the largest k3 shortly before" in alert.message
        assert f"{largest:.3g} nats" in alert.message
        assert largest > 2 * base


@pytest.mark.parametrize("period", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("at", [32, 48, 64])
def test_what_swings_is_not_still_rising_in_every_swing(at, period):
    """Told of a trough, it would be at every peak, though no peak is higher than those before."""
    k3 = swinging(at, 10, period)
    for alert in judged(RuleSet(), k3.tolist()):
        if "still rising" in alert.message:
            assert k3[alert.step] >= 2 * k3[alert.since - 20 : alert.since].max()


def test_a_larger_spike_is_hidden_by_no_smaller_one():
    rules = RuleSet({"spike": {"cooldown": 50}})
    series = [*ordinary(100), 0.03, *ordinary(4, 101), 0.06, *ordinary(4, 106), 0.04]
    alerts = [alert for alert in judged(rules, series) if "spike" in alert.kinds]
    assert [alert.step for alert in alerts] == [100, 105]


def test_a_norm_that_is_passed_further_is_told_though_its_event_was_critical():
    """A spike was critical for its size at .4 nats; then the level rises slowly past 2 nats."""
    risen = [min(0.4 * 1.15**step, 5.0) for step in range(25)]
    series = [*ordinary(60), *risen]
    alerts = judged(RuleSet(), series)
    assert "spike" in alerts[0].kinds
    assert alerts[0].severity == "critical"
    (told,) = [a for a in alerts if "limit" in a.kinds and a.severity == "critical"]
    assert "the norm is 2 nats" in told.message
    assert series[told.step] > 2 >= series[told.step - 1]


def test_what_comes_long_after_is_another_event():
    series = [*ordinary(100), 0.03, *ordinary(9, 101), 0.03]
    assert [(a.phase, a.since) for a in judged(RuleSet(), series)] == [
        ("open", 100),
        ("open", 110),
    ]


def test_actions_and_scores_match_any_kind():
    alert = Alert(
        step=7, kind="spike", severity="critical", pair=None, message="", kinds=("spike", "surge")
    )
    assert Actions({"surge": "stop"})([alert]) == {"stop"}
    assert Actions({"surge:critical": "stop"})([alert]) == {"stop"}
    assert Actions({"surge:warn": "stop"})([alert]) == frozenset()
    assert Event(5, 9, "surge").concerns(alert)
    assert not Event(5, 9, "drift").concerns(alert)
    assert Alert(step=0, kind="x", severity="warn", pair=None, message="").kinds == ("x",)


# --- what a text says ------------------------------------------------------------------------
def numbers(message):
    """All numbers of a message, as they are written."""
    return set(NUMBER.findall(message))


def written(*values):
    return {f"{value:.3g}" for value in values}


def first(kind, series, **values):
    return next(a for a in judged(RuleSet(), series, **values) if kind in a.kinds)


def test_what_a_spike_and_a_surge_say_is_true():
    series = [*ordinary(100), 0.4]
    alert = first("spike", series)
    log = np.log(series)
    near = [np.median(log[t - 9 : t]) for t in range(9, 101)]
    misses = log[9:100] - near[:-1]
    expected = math.exp(near[-1] + np.median(misses[-50:]))
    last, before = max(series[95:100]), max(series[80:95])
    known = written(0.4, 0.4 / expected, expected, 0.4 / last, last, 0.4 / before, before)
    known |= {"5", "15", f"{alert.values['z']:.1f}"}
    assert numbers(alert.message.removeprefix("policy_ref: ").replace("k3", "")) == known


def test_what_a_shift_says_is_true():
    series = [*ordinary(120), *ordinary(30, 120, level=0.02)]
    alert = first("shift", series)
    now = np.median(series[alert.step - 6 : alert.step + 1])
    before = np.median(series[alert.step - 31 : alert.step - 6])
    said = numbers(alert.message.replace("k3", ""))
    assert written(now, before, now / before) | {"25", f"{alert.values['z_moved']:.1f}"} == said


def test_what_a_drift_says_is_true():
    series = [wobble(t, 0.01 * (1 + min(max(t - 200, 0), 100) / 100)) for t in range(330)]
    alert = first("drift", series)
    history = series[: alert.step]
    eighth = len(history) // 8
    now = np.median(history[-eighth:])
    low, middle, high = sorted(np.median(history[i * eighth : (i + 1) * eighth]) for i in range(4))[
        1:
    ]
    said = numbers(alert.message.replace("k3", ""))
    youngest = len(history) - 4 * eighth + 1
    assert said == written(now, now / middle, middle, high / low) | {
        str(eighth),
        str(youngest),
        str(len(history)),
    }


def test_what_a_runaway_says_is_true():
    series = [wobble(t, 0.01 * 2 ** (max(t - 150, 0) / 20)) for t in range(230)]
    alert = first("runaway", series)
    old, middle, now = (
        np.median(series[alert.step - back - 8 : alert.step - back + 1]) for back in (60, 30, 0)
    )
    doubling = f"{60 * math.log(2) / math.log(now / old):.0f}"
    said = numbers(alert.message.split("; ")[0].replace("k3", ""))
    assert said == written(old, middle, now) | {"30", doubling}


@pytest.mark.parametrize("level", [0.7, 3.0])
def test_what_the_norm_says_is_true(level):
    series = [wobble(t, level) for t in range(5)]
    alert = first("limit", series, tokens=math.nan)
    three = series[:3]
    said = numbers(alert.message.replace("k3", ""))
    if level < 2:
        assert said == written(np.median(three), 0.5)
    else:
        assert said == written(three[-1], min(three), 2.0)
