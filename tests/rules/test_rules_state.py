import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klmonitor.report import PairReport, Report
from klmonitor.rules import RuleSet
from klmonitor.testing import FAMILIES, kl_series, reports, spike, step
from tests.helpers.rulecases import found, judged, ordinary, report

STEPS = 260


def eventful(family, seed):
    """A run with a level that moves, a gap in the data, NaN, zeros and a spike."""
    series = kl_series(family, step(3), steps=STEPS, at=120, seed=seed)
    k3 = series.k3.copy()
    k3[60:62] = np.nan
    k3[90:95] = 0.0
    k3[200] *= 12
    for one in reports(series):
        t = one.step
        pair = one.pairs["policy_ref"]
        values = {
            **pair.values,
            "k3/mean": float(k3[t]),
            "k1/mean": -float(k3[t]) if t == 150 else pair["k1/mean"],
            "gap": 1e-4 * np.sin(t),
            "gap_z": np.sin(t),
            "outliers/rate": 5.0 + np.cos(t),
            "dominance/k1/level": float(t % 50 == 7),
            "dominance/k1/j": float(1 + t % 5),
        }
        present = {} if 70 <= t < 76 else {"policy_ref": PairReport("policy_ref", values)}
        yield Report(step=t, first_step=t, pairs=present)


def resumed(state):
    """A new rule set that continues from a state that has been through a file."""
    rules = RuleSet()
    rules.load_state_dict(json.loads(json.dumps(state, allow_nan=False)))
    return rules


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    st.sampled_from(sorted(FAMILIES)),
    st.integers(0, 5),
    st.lists(st.integers(0, STEPS), max_size=4),
)
def test_a_resumed_run_says_what_an_uninterrupted_one_says(family, seed, interruptions):
    series = list(eventful(family, seed))
    whole, pieces = RuleSet(), RuleSet()
    for one in series:
        if one.step in interruptions:
            pieces = resumed(pieces.state_dict())
        assert repr(pieces.judge(one)) == repr(whole.judge(one))
    assert pieces.state_dict() == whole.state_dict()


def test_resuming_in_mid_episode_raises_no_duplicate_and_loses_no_baseline():
    rules = RuleSet()
    first = judged(rules, [*ordinary(120), *ordinary(10, 120, level=0.05)])
    assert {"spike", "shift"} <= {alert.kind for alert in first}
    rules = resumed(rules.state_dict())
    assert judged(rules, ordinary(20, 130, level=0.05), start=130) == []
    rules = resumed(rules.state_dict())
    assert ("spike", 175) in found(
        judged(rules, [*ordinary(25, 150), 0.2, *ordinary(5, 176)], start=150)
    )


def test_the_state_does_not_grow():
    rules = RuleSet()
    sizes = []
    for one in reports(kl_series("flat", spike(5), steps=1500, at=800)):
        rules.judge(one)
        if one.step in (700, 1499):
            sizes.append(len(json.dumps(rules.state_dict())))
    assert sizes[1] < 1.1 * sizes[0]
    assert sizes[1] < 45_000


def test_a_state_of_another_version_is_refused():
    state = {**RuleSet().state_dict(), "version": 99}
    with pytest.raises(ValueError, match=r"version 99.*fresh RuleSet"):
        RuleSet().load_state_dict(state)


def test_a_state_of_the_first_version_goes_on_with_its_levels():
    state = json.loads((Path(__file__).parents[1] / "data/v1/state.json").read_text())["rules"]
    rules = resumed(state)
    k3 = math.exp(state["tracks"]["policy_ref"]["seen"][-1])
    judgement = rules.judge(report(61, k3__mean=20 * k3, k1__mean=20 * k3))
    assert judgement.scores["policy_ref"] > 4.5
    assert "spike" in judgement.alerts[0].kinds
    assert resumed(rules.state_dict()).state_dict() == rules.state_dict()


def test_a_story_survives_a_checkpoint():
    rules = RuleSet()
    judged(rules, [*ordinary(100), 0.05])
    (alert,) = judged(resumed(rules.state_dict()), [0.2], start=101)
    assert (alert.phase, alert.since) == ("worse", 100)
    assert "still rising" in alert.message


def test_thresholds_are_the_new_sets_own():
    rules = RuleSet()
    judged(rules, ordinary(100))
    strict = RuleSet({"limit": {"policy_ref": 0.005}})
    strict.load_state_dict(rules.state_dict())
    one = report(100, k3__mean=0.01, k1__mean=0.01)
    assert [alert.kind for alert in strict.judge(one).alerts] == ["limit"]
