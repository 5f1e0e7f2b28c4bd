"""Every number in the text of every kind of alert is true by the step's own record.

What compares k3 with its past is in test_story.py; here are the others. Expected numbers are
computed here from what was given, not taken from the alert.
"""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from scipy import stats

from klmonitor.monitor import Monitor
from klmonitor.report import Cause, Health, PairReport, Report
from klmonitor.rules import RuleSet
from klmonitor.rules.table import RULES
from tests.helpers.rulecases import ORDINARY, carried, judged, ordinary, report, token, wobble

NUMBER = re.compile(r"(?<![\w.^])[-+]?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
IN_TEST_STORY = {"spike", "surge", "shift", "drift", "runaway"}
SAID = {}
"""Kind -> the functions that check what it says."""


def says(*kinds):
    """Registers what checks the sentence of kinds."""

    def register(function):
        for kind in kinds:
            SAID.setdefault(kind, []).append(function)
        return function

    return register


def numbers(message):
    """All numbers of a message, as they are written, without sign."""
    message = message.removeprefix("policy_ref: ").removeprefix("rollout_old: ")
    return {found.lstrip("+-") for found in NUMBER.findall(message)}


def g(*values):
    return {f"{abs(value):.3g}" for value in values}


def whole(*values):
    return {f"{abs(value):.0f}" for value in values}


def one(rules, reports, kind):
    """The first alert that tells of a kind."""
    for each in reports:
        for alert in rules.judge(each).alerts:
            if kind in alert.kinds:
                return alert
    raise AssertionError(f"no {kind}")


def rng_batch(seed=0, rows=8, columns=64, size=0.1):
    rng = np.random.default_rng(seed)
    q = -rng.exponential(1.0, (rows, columns)) - 0.1
    return q, q + size * rng.normal(size=q.shape)


def monitored(q, p, **kwargs):
    monitor = Monitor(**kwargs)
    monitor.observe(policy=torch.from_numpy(q), ref=torch.from_numpy(p))
    return monitor.step(1)


# --- dominance -------------------------------------------------------------------------------
@says("dominance_k1")
def dominated_k1():
    q, p = rng_batch()
    p[3, 7] = q[3, 7] - 40
    (alert,) = monitored(q, p).alerts
    d = p - q
    rest = np.delete(-d, 3 * 64 + 7)
    known = whole(1, d.size) | g(100 * 40 / np.abs(d).sum(), (-d).mean(), rest.mean(), 40)
    said, of_k3 = alert.message.split("; k3 is ")
    k3 = np.expm1(d) - d
    rest_of_k3 = (k3.sum() - k3[3, 7]) / (d.size - 1)
    assert alert.kinds == ("dominance_k1", "dominance_k3")
    assert numbers(said) == known | whole(0, 3, 7), "micro-batch, sequence, position"
    known = whole(1, d.size) | g(100 * k3[3, 7] / k3.sum(), k3.mean(), rest_of_k3, 40)
    assert numbers(of_k3) == known | whole(0, 3, 7)
    assert alert.values["mean"] == pytest.approx((-d).mean())
    assert alert.values["top_share"] == pytest.approx(40 / np.abs(d).sum())


@says("dominance_k3")
def dominated_k3():
    q, p = rng_batch(1)
    q[5, 9] = p[5, 9] - 7
    (alert,) = monitored(q, p, rules={"gap": False}).alerts
    d = p - q
    k3 = np.expm1(d) - d
    top = k3[5, 9]
    rest = (k3.sum() - top) / (k3.size - 1)
    known = whole(1, d.size) | g(100 * top / k3.sum(), k3.mean(), rest, 7)
    assert alert.kind == "dominance_k3"
    assert numbers(alert.message) == known | whole(0, 5, 9)


# --- gap, outliers, precision, what is not finite ----------------------------------------------
@says("gap")
def gap():
    """Tokens that q would hardly draw: uniform ones, 64 sequences."""
    rng = np.random.default_rng(2)
    q, p = rng_batch(2, rows=64)
    p = p - np.abs(rng.normal(0, 0.4, q.shape))
    found = monitored(q, p, rules={"dominance_k1": False, "dominance_k3": False})
    (alert,) = [a for a in found.alerts if a.kind == "gap"]
    r = np.expm1(p - q)  # k3 - k1
    mean, k3 = r.mean(), (r - (p - q)).mean()
    per_sequence = (r - mean).sum(axis=1)
    se = math.sqrt(64 / 63 * (per_sequence**2).sum()) / r.size
    z = stats.norm.isf(stats.t.sf(abs(mean / se), 63))
    said, _, mass = alert.message.partition(" times k3: ")
    assert numbers(mass) == {f"{-mean:.2g}"}, "of p's mass: mean r is short of 1 by it"
    said = numbers(said)
    assert g(mean, abs(mean) / k3) | {"0"} <= said
    (of_z,) = said - g(mean, abs(mean) / k3) - {"0"}
    assert float(of_z) == pytest.approx(z, rel=0.02)  # the deviate is an approximation


@says("gap")
def gap_of_many_times_k3():
    """More than k3 is said in times of it; over several steps also which step's k3 that is."""
    for k3, size in ((0.001, "42 times"), (0.06, "70 % of")):
        values = {"k3__mean": k3, "on_policy": 1.0, "gap": 0.042, "gap_se": 1e-3, "gap_z": 30.0}
        alert = one(RuleSet(), [report(1, **values)], "gap")
        assert f", {size} k3: " in alert.message
        calm = report(1, **values | {"gap": 0.0, "gap_z": 0.0})
        alert = one(RuleSet(), [calm, report(2, **values)], "gap")
        half = size.replace("42", "21").replace("70", "35")  # 0.021 nats over two steps
        assert " over 2 steps is " in alert.message
        assert f", {half} this step's k3: " in alert.message


@says("outlier_rate")
def outlier_rate():
    rng = np.random.default_rng(1)
    rates = [1e4 * rng.poisson(20) / 4096 for _ in range(120)] + [1e4 * 200 / 4096]
    reports = (
        report(step, k3__mean=wobble(step), outliers__rate=rate, extremes=[token(-3.0)])
        for step, rate in enumerate(rates)
    )
    alert = one(RuleSet(), reports, "outlier_rate")
    roots = np.sqrt(np.array(rates) / 1e4)
    past = roots[15:115]  # a hundred, without the latest five
    usual = np.median(past)
    error = math.sqrt(5 / (4 * 4096))
    mad = 1.4826 * np.median(np.abs(past - usual))
    scale = math.sqrt(max(mad**2 - error**2, (0.03 * usual) ** 2) + error**2)
    known = whole(200, 4096) | g(rates[-1], 1e4 * usual**2) | {f"{(roots[-1] - usual) / scale:.1f}"}
    # "10,000", "|d| = 2", "the latest 5" and where the largest is
    said = numbers(alert.message.replace("10,000", ""))
    assert said == known | {"2", "5"} | whole(3, 0, 3, 7, 11)


@says("outlier_rate")
def outliers_where_there_were_none():
    """Told some steps after a jump: which steps had none is said."""
    rates = [0.0] * 60 + [0.0, 5.0, 5.0, 5.0, 5.0, 5.0, 400.0]
    reports = (
        report(step, k3__mean=wobble(step), outliers__rate=rate) for step, rate in enumerate(rates)
    )
    alert = one(RuleSet(), reports, "outlier_rate")
    assert alert.step == 66
    assert (
        "400 per 10,000 where 0 is the median of earlier steps, the latest 5 left out"
        in alert.message
    )


@says("low_precision")
def low_precision():
    for k3, severity in ((2e-3, "info"), (2e-5, "warn")):
        (alert,) = RuleSet().judge(report(0, k3__mean=k3, low_precision=1.0)).alerts
        assert alert.severity == severity
        said = numbers(alert.message.replace("bf16", "").replace("fp16", ""))
        assert said == {"0.0001"} | g(k3)


@says("nonfinite")
def nonfinite():
    q, p = rng_batch(3)
    p[0, :5] = np.nan
    (alert,) = monitored(q, p).alerts
    assert numbers(alert.message) == whole(5, q.size)
    assert alert.values == {"nonfinite": 5, "share": 5 / q.size}


# --- k1 --------------------------------------------------------------------------------------
@says("k1_excursion")
def k1_excursion():
    rng = np.random.default_rng(3)
    k1 = 0.002 + 0.001 * rng.normal(size=121)
    k1[120] = -0.02
    k3 = [wobble(step, 0.002) for step in range(121)]
    reports = (
        report(step, k3__mean=a, k1__mean=b) for step, (a, b) in enumerate(zip(k3, k1, strict=True))
    )
    alert = one(RuleSet(), reports, "k1_excursion")
    past = k1[15:115]
    centre = np.median(past)
    mad = 1.4826 * np.median(np.abs(past - centre))
    slack = k3[-1] - np.median(k3[15:115])  # k1 may move as far as k3 did
    scale = math.sqrt(max(mad**2 - 1e-10, (0.03 * centre) ** 2) + 1e-10 + slack**2)
    z = abs(k1[-1] - centre) / scale
    said = numbers(alert.message)
    assert g(k1[-1], centre, k3[-1]) <= said
    (of_z,) = said - g(k1[-1], centre, k3[-1])
    assert float(of_z) == pytest.approx(z, abs=0.06)


@says("k1_negative")
def k1_negative():
    rng = np.random.default_rng(5)
    k1 = -0.003 + 0.002 * rng.normal(size=51)
    reports = (
        report(step, k3__mean=wobble(step), k1__mean=value, k1__se=0.002)
        for step, value in enumerate(k1)
    )
    alert = one(RuleSet(), reports, "k1_negative")
    fifty = k1[:50]
    error = math.sqrt(max(0.002**2, 2 * fifty.var()) / 50)
    z = fifty.mean() / error
    known = g(fifty.mean()) | {"50", "0", f"{abs(z):.1f}", f"{(fifty < 0).sum()}"}
    assert numbers(alert.message) == known


@says("k1_negative")
def k1_negative_at_once():
    q, p = rng_batch(6, rows=64, size=0.02)
    q, p = q - 0.5, p - 0.2
    found = monitored(q, p, rules={"gap": False})
    (alert,) = [a for a in found.alerts if a.kind == "k1_negative"]
    k1 = -(p - q)
    per_sequence = (k1 - k1.mean()).sum(axis=1)
    se = math.sqrt(64 / 63 * (per_sequence**2).sum()) / k1.size
    assert numbers(alert.message) == g(k1.mean()) | whole(k1.mean() / se) | {"0"}


# --- levels and falls ------------------------------------------------------------------------
@says("limit")
def limit_of_ones_own():
    (alert,) = judged(RuleSet({"limit": {"policy_ref": 0.125}}), [0.21])
    assert numbers(alert.message.replace("k3", "")) == g(0.21, 0.125)


@says("limit")
def limit_of_one_step():
    (alert,) = judged(RuleSet(), [2.7])
    assert numbers(alert.message) == g(2.7, 2)
    (alert,) = judged(RuleSet(), [2.7], k3__mean_without_top=2.2, dominance__k3__level=1.0)[:1]
    assert "k1 is 2.7 nats" in alert.message, "which no token dominates"
    alone = judged(RuleSet(), [23.4], tokens=math.nan)[0]
    assert numbers(alone.message) == g(23.4, 20)


@says("limit")
def limit_of_an_engine():
    levels = [0.02, 0.021, 0.024, 0.08, 0.09]
    rules = RuleSet()
    alerts = [
        alert
        for step, k3 in enumerate(levels)
        for alert in rules.judge(
            report(step, pair="rollout_old", k3__mean=k3, k1__mean=k3, on_policy=0.0)
        ).alerts
    ]
    first, second = alerts
    assert numbers(first.message) == g(0.021, 0.01)
    assert numbers(second.message) == g(0.08, 0.05), "the median of .024, .08 and .09"


@says("fall")
def fall():
    series = [*ordinary(60, level=0.04), 0.0003, 0.00031, 0.00029]
    alert = judged(RuleSet(), series)[0]
    upto = series[: alert.step + 1]
    now, before = np.median(upto[-3:]), upto[-41:-3]
    usual = np.median(before)
    known = g(now, usual) | {f"{now / usual:.2g}", f"{len(before)}"}
    assert numbers(alert.message) == known


@says("token_drop")
def token_drop():
    counts = [4000.0 * wobble(step) / 0.01 for step in range(70)] + [200.0]
    reports = (
        report(step, k3__mean=wobble(step), tokens=tokens, sequences=64.0)
        for step, tokens in enumerate(counts)
    )
    alert = one(RuleSet(), reports, "token_drop")
    usual = np.median(counts[:-6])
    assert numbers(alert.message) == g(200, 200 / 64, usual / 64) | whole(usual)


# --- what the loss does ----------------------------------------------------------------------
def of_pair(name, **values):
    """A report of one pair with a KL term; two underscores in a name stand for a slash."""
    named = {metric.replace("__", "/"): value for metric, value in values.items()}
    one_pair = PairReport(name, {**ORDINARY, **named}, penalty="a term without numbers")
    return Report(step=1, pairs={name: one_pair})


@says("pull_dead")
def pull_dead():
    dead = {"penalty__dead_share": 41 / 4096, "penalty__dead_pull": 0.31}
    alert = one(RuleSet(), [of_pair("policy_ref", k3__mean=0.01, **dead)], "pull_dead")
    assert numbers(alert.message) == {"41", "4096", "31"}


@says("pull_dominated")
def pull_dominated():
    held = of_pair("policy_ref", k3__mean=0.01, penalty__top_share=0.62, penalty__top_d=-4.0)
    alert = one(RuleSet(), [held], "pull_dominated")
    assert numbers(alert.message) == {"10", "4096", "62"}, "clip(N / 400, 1, 10) tokens"


@says("pull_reversed")
def pull_reversed():
    away = {"penalty__effective_beta": -0.021, "penalty__effective_beta_se": 0.002}
    quiet = {"dominance__level": 0.0, "cv__lambda": 0.9, "penalty__beta": 0.04}
    alert = one(
        RuleSet(), [of_pair("policy_ref", k3__mean=0.053, **away, **quiet)], "pull_reversed"
    )
    assert numbers(alert.message) == {"0.021", "0.002", "0.053", "0.04"}


@says("unclipped")
def unclipped():
    q, p = rng_batch(8, rows=16)
    q, p = q - 8, p - 8
    p[3, 7] = q[3, 7] + 6
    advantages = np.where(np.arange(16) == 3, -1.0, 0.5)
    for known in (True, False):
        monitor = Monitor(rules={"gap": False})
        given = {"advantages": torch.from_numpy(advantages)} if known else {}
        monitor.observe(old=torch.from_numpy(q), policy=torch.from_numpy(p), **given)
        alert = one(RuleSet(), [monitor.step(1)], "unclipped")
        r = np.exp(p - q)
        weight = np.abs(advantages)[:, None] * r if known else r
        share = weight[3, 7] / weight.sum()
        said = numbers(alert.message.removeprefix("old_policy: "))
        known_numbers = g(r[3, 7]) | whole(100 * share) | g(6) | whole(0, 3, 7)
        assert said == known_numbers | (whole(1) if known else set()), alert.message


# --- what is certain -------------------------------------------------------------------------
def of_run(step, values, **pair):
    """A report with values of the run."""
    one_pair = PairReport("policy_ref", {**ORDINARY, **pair})
    run = {f"run/{name}": value for name, value in values.items()}
    return Report(step=step, pairs={"policy_ref": one_pair}, run_values=run)


@says("nonzero_start")
def nonzero_start():
    known = {"step_of_run": 0, "dropout": 0.1, "reference_dropout": 0.05}
    found = of_run(1, known, **{"k3/mean": 0.066, "k1/mean": 0.05})
    (alert,) = RuleSet().judge(found).alerts
    assert numbers(alert.message) == {"0.066", "0", "0.1"}
    assert alert.message.endswith("and in the reference, each with draws of its own")


@says("nonzero_start")
def nonzero_start_without_counts():
    series = [wobble(step, 0.066) for step in range(21)]
    (alert,) = judged(RuleSet(), series)
    known = g(np.median(series[:3]), np.median(series[10:20])) | {"20", "0"}
    assert numbers(alert.message) == known


@says("identical")
def identical():
    alike = {"k3/mean": 0.0, "k1/mean": 0.0, "identical": 1.0}
    reports = (of_run(s, {"learning_rate": 1e-6, "updates": 4 * s}, **alike) for s in range(9))
    alert = one(RuleSet(), reports, "identical")
    assert alert.step == 3
    assert numbers(alert.message) == {"12", "0"}, "four updates a step since the first"


@says("negative_penalty")
def negative_penalty():
    paid = {"k3/mean": 0.02, "k1/mean": 0.01, "penalty/mean": -0.04, "penalty/se": 0.001}
    (of_beta,) = RuleSet().judge(of_run(1, {"beta": -2.0}, **paid)).alerts
    assert numbers(of_beta.message) == {"2", "0.04"}
    (unknown,) = RuleSet().judge(of_run(1, {}, **paid)).alerts
    assert numbers(unknown.message) == {"0.04", "0", "0.01"}


@says("no_data")
def no_data():
    rules = RuleSet()
    judged(rules, ordinary(5))
    alert = one(rules, (Report(step=step, pairs={}) for step in range(5, 99)), "no_data")
    assert numbers(alert.message) == {f"{alert.step - 4}"}
    rules = RuleSet()
    judged(rules, ordinary(25))
    alert = one(rules, (Report(step=step, pairs={}) for step in range(25, 99)), "no_data")
    assert numbers(alert.message) == {f"{alert.step - 24}"}


@says("inactive")
def inactive():
    broken = Report(step=1, pairs={}, health=Health(7, 0, False, "observe: shapes differ"))
    alert = one(RuleSet(), [broken], "inactive")
    assert alert.message == "klmonitor misses log-probs: observe: shapes differ"


@says("impossible")
def impossible():
    q, p = rng_batch(7)
    q, p = q - 1, p - 1
    p[2, 5:9] = 1.125
    first = monitored(q, p).alerts[0]
    assert first.kind == "impossible", "before anything else"
    told = numbers(first.message.replace("above 0", ""))
    place = told - {"4", "1.125", "0", "2"}
    assert {"4", "1.125", "0", "2"} <= told
    assert place in ({"5"}, {"6"}, {"7"}, {"8"})


@says("cause")
def cause():
    """The sentence is that of the cause, whose numbers tests/numbers/test_causes.py checks."""
    known = Cause("shift", "the tensors are shifted by one position")
    pair = PairReport("rollout_old", {**ORDINARY, "k3/mean": 0.001, "k1/mean": 0.001}, cause=known)
    alert = one(RuleSet(), [Report(step=1, pairs={"rollout_old": pair})], "cause")
    assert alert.message == f"rollout_old: {known.text}"
    assert alert.cause == "", "it is not said twice"


@pytest.mark.parametrize(
    "check", [c for each in SAID.values() for c in each], ids=lambda c: c.__name__
)
def test_what_it_says_is_true(check):
    check()


def test_no_kind_goes_unchecked():
    assert {rule.kind for rule in RULES} == set(SAID) | IN_TEST_STORY


# --- what is added to a message ----------------------------------------------------------------
def test_a_warning_that_would_be_critical_says_on_how_little_it_rests():
    few = {"tokens": 40.0, "sequences": 3.0, "clusters": 1.0}
    (alert,) = judged(RuleSet(), [2.7], **few)
    message, _, why = alert.message.partition("; a warning only, since it rests on ")
    assert why == "40 tokens, 3 sequences, 1 cluster"
    assert numbers(message) == g(2.7, 2)


def test_the_end_says_since_when_and_where_k3_is():
    rules = RuleSet()
    series = [*ordinary(100), 0.1, *ordinary(3, 101)]
    ended = [
        (step, end.message)
        for step, k3 in enumerate(series)
        for end in rules.judge(report(step, k3__mean=k3, k1__mean=k3)).ended
        if end.kind == "spike"
    ]
    ((step, message),) = ended
    assert step == 101
    assert numbers(message) == {"100"} | g(series[101])


def test_a_spike_that_is_a_token_says_what_is_left_without_it():
    rules = RuleSet()
    judged(rules, ordinary(100))
    share = {"dominance/k3/top_share": 0.97}
    two = carried(100, 0.3, without=0.0112, tokens=2.0, k1__mean=0.01, **share)
    (alert,) = rules.judge(two).alerts
    assert alert.severity == "warn"
    for part in (
        "k3 rose to 0.3 nats per token",
        "without 2 tokens it is 0.0112 nats, no spike",
        "97 % of the sum of k3: mean 0.3 nats per token with, 0.0112 nats without",
    ):
        assert part in alert.message
