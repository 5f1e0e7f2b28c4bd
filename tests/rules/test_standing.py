"""From when rules judge is said, and is so."""

import pytest

from klmonitor.monitor import Monitor
from klmonitor.rules import RuleSet
from klmonitor.rules.standing import FROM, standing
from klmonitor.rules.track import Track
from tests.helpers.rulecases import judged, kinds, ordinary, report, wobble


@pytest.mark.parametrize("kind", ["spike", "surge"])
def test_the_first_step_that_can_be_told_is_the_one_that_is_said(kind):
    def told(steps):
        return kind in kinds(judged(RuleSet(), [*ordinary(steps - 1), 0.6]))

    assert [told(FROM[kind] - 1), told(FROM[kind])] == [False, True]


def test_an_excursion_of_k1_can_be_told_from_the_step_that_is_said():
    def told(steps):
        k1 = [*(wobble(step, 0.002) for step in range(steps - 1)), 0.02]
        rules, k3 = RuleSet(), 0.002
        found = [
            rules.judge(report(step, k3__mean=wobble(step, k3), k1__mean=value)).alerts
            for step, value in enumerate(k1)
        ]
        return "k1_excursion" in kinds(found[-1])

    assert [told(FROM["k1_excursion"] - 1), told(FROM["k1_excursion"])] == [False, True]


def test_a_shift_is_scored_from_the_step_that_is_said():
    track, scored = Track(), []
    for step in range(90):
        one = report(step, k3__mean=wobble(step)).pairs["policy_ref"]
        reading = track.read(one, {})
        scored.append(reading.score.z_moved == reading.score.z_moved)
        track.take(reading, ())
    assert scored.index(True) + 1 == FROM["shift"]


@pytest.mark.parametrize(
    ("kind", "limits"),
    [("runaway", {"scales": 0}), ("drift", {"z": 0, "ratio": 1e-9, "nats": 0})],
)
def test_growth_is_told_from_the_step_that_is_said(kind, limits):
    growing = [0.001 * 2 ** (step / 15) for step in range(FROM[kind] + 5)]
    rules = RuleSet({kind: limits, "limit": False})
    first = next(alert.step for alert in judged(rules, growing) if kind in alert.kinds)
    assert first + 1 == FROM[kind]


def test_words_count_the_pairs_own_steps():
    limits = RuleSet().settings.thresholds
    assert standing(1, limits).startswith("1 step with its tokens so far; surge judges from the 11")
    assert "shift judges from the 69th" in standing(20, limits)
    assert "spike" not in standing(15, limits)
    assert standing(100, limits) == "100 steps with its tokens so far, all rules judge"
    assert "surge" not in standing(1, RuleSet({"surge": False}).settings.thresholds)


def test_a_monitor_says_it_of_pairs_seen_and_to_come():
    monitor = Monitor(rules={"surge": False, "k1_excursion": False})
    for step in range(40):
        one = report(step, k3__mean=wobble(step), pair="policy_ref")
        if step % 10 == 0:
            monitor._judge.rules.judge(one)
    ahead = "shift judges from the 69th, runaway judges from the 81st, drift judges from the 101st"
    assert monitor.describe(["policy_ref", "old_policy"]).splitlines() == [
        f"policy_ref: 4 steps with its tokens so far; spike judges from the 16th, {ahead}",
        f"old_policy: 0 steps with its tokens so far; spike judges from the 16th, {ahead}",
    ]
