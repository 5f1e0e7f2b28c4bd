"""What cannot work is refused with the remedy; after setup nothing raises, and it is said."""

from __future__ import annotations

import json
import logging
import math
import sys
import threading

import numpy as np
import pytest
import torch

import klmonitor
from klmonitor import Monitor
from klmonitor.boundary import PATIENCE
from klmonitor.hooks.actions import Actions
from klmonitor.report import Alert, Report

LP = -torch.rand(8, 16, generator=torch.Generator().manual_seed(0)) - 0.1


def feed(monitor, **changes):
    monitor.observe(**{"policy": LP, "ref": LP + 0.1, "mask": torch.ones(8, 16), **changes})


# --- settings that would do nothing ----------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"groups": "math"}, TypeError, r"groups='math' is one string: give a list, groups="),
        ({"pairs": "policy_ref"}, TypeError, r"pairs='policy_ref' is one string: give a list"),
        ({"sinks": "wandb"}, TypeError, r"sinks='wandb' is one string: give a list"),
        ({"rules": 5}, TypeError, "rules=5: give a preset's name, a table of changes or a"),
        ({"rules": {"spike": {"z": -1}}}, ValueError, "spike.z is -1: give a number, 0 or more"),
        ({"rules": {"spike": {"z": 10**400}}}, ValueError, "spike.z is 1000.*: give a number"),
        ({"rules": {"spike": {"z": 10**9999}}}, ValueError, "an integer too long to show"),
        ({"rules": {"spike": {"z": math.nan}}}, ValueError, "spike.z is nan: give a number"),
        ({"sinks": ["function"]}, ValueError, "unknown sink 'function': name tensorboard"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(settings, error, message):
    with pytest.raises(error, match=message) as caught:
        Monitor(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("globs", "message"),
    [
        (["nothing/*"], "'nothing/\\*' matches no metric"),
        (["k3/meen"], "did you mean 'k3/mean'"),
        (["core", "kl/policy_reff/*"], "matches no metric"),
    ],
)
def test_globs_that_choose_nothing_are_refused(globs, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Monitor(tmp_path, sinks=["tensorboard"], metrics=globs)
    Monitor(
        tmp_path,
        sinks=["tensorboard"],
        metrics=["core", "k3/*", "kl/policy_ref/gap*", "group/math/*", "klmonitor/*"],
    ).close()


def test_an_undeclared_group_is_said_once(caplog):
    monitor = Monitor(groups=["math"])
    for _ in range(3):
        feed(monitor, group="maths")
    feed(monitor, group=["code", "maths"] * 4)
    said = [r.getMessage() for r in caplog.records]
    assert said == [
        "klmonitor: group 'maths' was not declared and counts as 'other': add it to groups=[...]",
        "klmonitor: group 'code' was not declared and counts as 'other': add it to groups=[...]",
    ]
    assert monitor.step(0).pairs["policy_ref"]["group/other/k1/mean"] < 0


def test_sums_by_sequence_are_told_from_log_probs():
    with pytest.raises(ValueError, match="pass log-probs by token, not their sums by sequence"):
        Monitor().observe(policy=LP.sum(1, True), ref=LP.sum(1, True), mask=torch.ones(8, 16))


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({"stop": False}, set()),
        ({"stop": True, "checkpoint": False}, {"stop"}),
        ({"stop": True, "checkpoint": True}, {"stop", "checkpoint"}),
        ({}, set()),
    ],
)
def test_a_callback_may_answer_with_a_table(said, wanted):
    alert = Alert(step=3, kind="surge", severity="critical", pair=None, message="")
    assert Actions(lambda alert: said)([alert]) == wanted


# --- reports ---------------------------------------------------------------------------------
def test_a_step_always_has_a_report():
    monitor = Monitor()
    report = monitor.step(3)
    assert isinstance(report, Report)
    assert (report.step, report.pairs, report.alerts) == (3, {}, ())
    assert report.scalars()["klmonitor/active"] == 1
    assert report.explain() == "step 3: no tokens were counted"
    assert monitor.step(4, wait=False).step == 3 or monitor.step(4).step == 4


def test_before_the_first_result_a_report_that_is_not_waited_for_has_no_step():
    monitor = Monitor()
    feed(monitor)
    assert monitor.step(0, wait=False).step is None
    feed(monitor)
    assert monitor.step(1, wait=False).step == 0
    monitor.close()


def test_a_pair_that_is_not_there_says_which_are():
    monitor = Monitor()
    feed(monitor)
    report = monitor.step(0)
    with pytest.raises(KeyError, match="no pair 'rollout_old' at this step, which has policy_ref"):
        report.pairs["rollout_old"]
    assert report.pairs.get("rollout_old") is None


def test_a_metric_that_is_none_says_the_nearest():
    monitor = Monitor()
    feed(monitor)
    pair = monitor.step(0).pairs["policy_ref"]
    with pytest.raises(KeyError, match="no metric 'k3/meen': did you mean 'k3/mean'"):
        pair["k3/meen"]
    assert math.isnan(pair["penalty/mean"]), "a metric that this step has not"
    assert math.isnan(pair["group/math/k1/mean"])


# --- steps -----------------------------------------------------------------------------------
@pytest.mark.parametrize("step", [np.int64(7), torch.tensor(7), np.array(7), True + 6])
def test_a_step_is_a_whole_number_of_any_kind(step):
    found = Monitor().step(step).step
    assert (found, type(found)) == (7, int)


@pytest.mark.parametrize("step", [None, "7", 7.5, torch.tensor([1, 2])])
def test_what_is_no_step_is_refused_at_first_and_counted_later(step):
    with pytest.raises(TypeError, match="give the trainer's step, a whole number"):
        Monitor().step(step)
    monitor = Monitor()
    monitor.step(4)
    assert monitor.step(step).step == 5
    assert monitor.errors == 1


def test_a_step_that_goes_back_is_said_once(caplog):
    monitor = Monitor()
    for step in (5, 6, 4, 5, 3):
        monitor.step(step)
    assert [r.getMessage() for r in caplog.records] == [
        "klmonitor: step 4 comes after step 6: steps that come again replace"
    ]


def test_after_close_it_says_once_that_nothing_is_taken(caplog):
    monitor = Monitor()
    feed(monitor)
    monitor.step(0)
    monitor.close()
    monitor.close()
    caplog.clear()
    for step in range(1, 4):
        feed(monitor)
        report = monitor.step(step)
        assert (report.step, report.pairs) == (step, {})
    assert [r.getMessage() for r in caplog.records] == [
        "klmonitor: this monitor is closed: what is observed and stepped from now on is left out"
    ]


# --- one policy that does not fit ------------------------------------------------------------
def test_a_policy_of_another_length_rests_alone_is_tried_again_and_is_told_once(caplog):
    monitor, told, held = Monitor(), [], {}
    for step in range(1, 26):
        bad = 5 <= step <= 12
        feed(monitor, rollout=LP[:, :14] if bad else LP)
        report = monitor.step(step)
        told += [(a.step, a.kind, a.message) for a in report.alerts if a.kind == "inactive"]
        held[step] = (set(report.pairs), report.health.active)
    assert all("policy_ref" in pairs for pairs, _ in held.values()), "the others go on"
    assert all(("rollout_policy" in held[s][0]) == (not 5 <= s <= 12) for s in held)
    assert [s for s, (_, active) in held.items() if not active] == [9, 10, 11, 12]
    ((step, _, message),) = told
    assert step == 4 + PATIENCE
    assert "what was observed of rollout: ValueError: rollout has shape [8, 14]" in message
    assert monitor.errors == 8
    assert len([r for r in caplog.records if "rollout failed" in r.getMessage()]) == 1


def test_where_only_one_policy_fits_the_batch_is_lost_and_counted():
    monitor = Monitor()
    feed(monitor)
    monitor.observe(policy=LP, ref=LP[:, :3], mask=torch.ones(8, 16))
    assert monitor.errors == 1
    assert monitor.step(0).pairs["policy_ref"].tokens == 128


# --- streams, threads, logs ------------------------------------------------------------------
class Full:
    """A stream that takes nothing."""

    def write(self, text):
        raise OSError(28, "No space left on device")

    def flush(self):
        raise OSError(28, "No space left on device")


def test_closing_needs_no_thread(monkeypatch, tmp_path):
    monitor = Monitor(tmp_path)
    feed(monitor)
    monitor.step(0)

    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    monitor.close()
    rows = (tmp_path / "steps.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [0]


@pytest.mark.parametrize("what", ["handler", "filter", "stderr"])
def test_a_log_that_raises_stops_nothing(what, monkeypatch):
    class Raises(logging.Handler):
        def emit(self, record):
            raise ValueError("a handler of the user's")

    def refuse(record):
        raise ValueError("a filter of the user's")

    logger = logging.getLogger("klmonitor")
    handler = Raises()
    if what == "handler":
        logger.addHandler(handler)
    elif what == "filter":
        logger.addFilter(refuse)
    else:
        monkeypatch.setattr(sys, "stderr", Full())
    try:
        monitor = Monitor()
        for step in range(40):
            feed(monitor, ref=LP + (0.1 if step < 39 else 3.0))
            if step == 20:
                monitor.observe(policy=LP, ref=LP[:1])
            report = monitor.step(step)
        monitor.close()
    finally:
        logger.removeHandler(handler)
        logger.removeFilter(refuse)
    assert report.alerts
    assert report.pairs["policy_ref"].tokens == 128


def test_disabled_it_is_off_and_says_so(monkeypatch):
    monkeypatch.setenv("KLMONITOR_DISABLE", "1")
    monitor = klmonitor.Monitor()
    feed(monitor)
    report = monitor.step(2)
    assert (report.step, report.health.active, report.pairs) == (2, False, {})
