"""The first line: its numbers are the record's, its words follow from them."""

import math
import random
from statistics import fmean

import pytest

from klmonitor.dashboard.columns import RunColumns
from klmonitor.record.rows import report_to_row
from klmonitor.report import PairReport, Report
from tests.helpers.reports import make_alert


def pair(step, k3=0.03, name="policy_ref", open_kinds=(), **more):
    """Of 64 sequences, nothing odd about it: k3 is the less noisy, and k1 agrees."""
    values = {
        "k1/mean": k3, "k2/mean": k3, "k3/mean": k3, "cv/mean": k3, "tokens": 6400.0,
        "k1/se": k3 / 5, "k2/se": k3 / 20, "k3/se": k3 / 20, "cv/se": k3 / 20, "sequences": 64.0,
        "cv/lambda": 1.0, "cv/corr": 0.9, "cv/variance_ratio": 0.01, "gap": 0.0, "gap_z": 0.0,
        "ess": 0.95, "on_policy": 1.0, "k1/cancellation": 0.5, "dominance/level": 0.0,
        "dominance/k1/level": 0.0, "dominance/k3/level": 0.0, "prompts": 64.0, "clusters": 64.0,
    }  # fmt: skip
    return PairReport(name, values | more, open_kinds=open_kinds)


def run_of(*series, alerts=(), open_kinds=()):
    columns = RunColumns("run")
    for step, k3 in enumerate(series[0], 1):
        last = step == len(series[0])
        found = pair(step, k3, open_kinds=open_kinds if last else ())
        report = Report(step=step, pairs={found.name: found})
        columns.add_row(report_to_row(report))
    for alert in alerts:
        columns.add_alert(alert)
    return columns


def line(columns, name="policy_ref"):
    return columns.glances()[name]


def flat(n, level=0.03, seed=0):
    rng = random.Random(seed)
    return [level * math.exp(rng.gauss(0, 0.2)) for _ in range(n)]


def test_level_and_verdict_are_those_of_the_last_step():
    columns = run_of(flat(80))
    parts = line(columns)["parts"]
    report = columns.report_at("policy_ref", 79)
    assert report.verdict.estimator == "k3"
    assert parts[0] == "step 80"
    assert parts[1] == f"k3 {report['k3/mean']:.4g} ± {report['k3/se']:.2g} nats/token"
    assert "believe k3" in parts
    assert parts[-1] == "no alert is open"
    assert (line(columns)["level"], line(columns)["since"]) == ("fine", None)


@pytest.mark.parametrize(("late", "word"), [(0.03, "steady"), (0.06, "rising"), (0.01, "falling")])
def test_the_trend_compares_the_last_eighth_with_the_one_before(late, word):
    series = [*flat(70), *flat(10, late, seed=1)]
    trend = line(run_of(series))["parts"][2]
    assert trend == (
        f"{word}: {fmean(series[-10:]):.3g} in the last 10 steps, {fmean(series[-20:-10]):.3g} "
        "in the 10 before"
    )


def test_a_flat_run_is_hardly_ever_called_a_trend():
    words = [line(run_of(flat(80, seed=seed)))["parts"][2].split(":")[0] for seed in range(200)]
    assert words.count("steady") >= 194, "3 of Welch's standard errors at 18 degrees: .8 %"


def test_too_short_a_run_has_no_trend():
    assert not any("before" in part for part in line(run_of(flat(9)))["parts"])


def test_open_events_are_told_with_their_first_step_the_gravest_first():
    alerts = [
        make_alert(step=20),
        make_alert(step=30, kind="limit"),
        make_alert(step=33, kind="limit", severity="critical", phase="worse", since=30),
    ]
    found = line(run_of(flat(40), alerts=alerts, open_kinds=("limit", "spike")))
    assert found["parts"][-1] == (
        "open: limit (critical) since step 30; spike (warn) since step 20"
    )
    assert (found["level"], found["since"]) == ("critical", 20)


def test_muted_alerts_are_told_and_do_not_count():
    alerts = [make_alert(step=20, severity="critical", muted=True)]
    found = line(run_of(flat(40), alerts=alerts, open_kinds=("spike",)))
    assert found["parts"][-1] == "open: spike (muted) since step 20"
    assert found["level"] == "fine"


def test_where_neither_is_to_be_believed_both_are_shown_and_no_trend_is_told():
    columns = run_of(flat(40))
    found = pair(41, 0.03, **{"gap_z": 9.0, "gap": 0.03, "k1/mean": -0.01})
    columns.add_row(report_to_row(Report(step=41, pairs={found.name: found})))
    report = columns.report_at("policy_ref", 40)
    assert report.verdict.estimator is None
    parts = line(columns)["parts"]
    assert parts[1].startswith("k1 -0.01 ± ")
    assert "k3 0.03 ± " in parts[1]
    assert "believe neither k1 nor k3" in parts
    assert not any("before" in part for part in parts)


def test_a_pair_that_stopped_is_told_where_it_did():
    columns = run_of(flat(40))
    other = pair(41, name="old_policy")
    columns.add_row(report_to_row(Report(step=41, pairs={"old_policy": other})))
    assert line(columns)["parts"][0] == "step 40, 1 step before the run's last"
    assert line(columns, "old_policy")["parts"][0] == "step 41"
