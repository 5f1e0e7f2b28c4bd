"""What a run is certain to have done, read from its own values."""

from __future__ import annotations

import json
import math

import pytest

from klmonitor.report import Report
from klmonitor.rules.notices import RunNotices


def said(values, notices=None, first=1):
    """(step, kind, text) of what a series of run values makes."""
    notices = notices or RunNotices()
    reports = [Report(step, {}, run_values=v, time=5.0) for step, v in enumerate(values, first)]
    found = [notice for report in reports for notice in notices.read(report)]
    assert all(notice.time == 5.0 for notice in found)
    return [(notice.step, notice.kind, notice.text) for notice in found]


def rates(*values):
    return [{} if math.isnan(v) else {"run/learning_rate": v} for v in values]


WARM_UP = [1e-6 * n / 20 for n in range(21)]
SCHEDULES = {
    "constant": [1e-6] * 100,
    "linear": WARM_UP + [1e-6 * (1 - n / 80) for n in range(1, 81)],
    "cosine": WARM_UP + [5e-7 * (1 + math.cos(math.pi * n / 80)) for n in range(1, 81)],
    "two stages of warm-up": [1e-8, 1e-7, 1e-6, 1e-6],
    "none": [math.nan] * 10,
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_schedule_is_no_change(schedule):
    assert said(rates(*schedule)) == []


@pytest.mark.parametrize("factor", [0.5, 2.0, 0.0, 10.0])
def test_a_learning_rate_that_jumps_is_told_once(factor):
    after = [factor * 1e-6] * 9
    expected = [(26, "learning_rate", f"learning rate 1e-06 -> {factor * 1e-6:.3g}")]
    assert said(rates(*WARM_UP, *[1e-6] * 4, *after)) == expected
    assert said(rates(*WARM_UP, *[1e-6] * 4, math.nan, *after))[0][1] == "learning_rate"
    assert said(rates(*[1e-6] * 4, 1.9e-6)) == []


def test_a_resumed_run_says_so_and_compares_with_what_was_before():
    notices = RunNotices()
    said(rates(1e-6, 1e-6), notices)
    again = RunNotices()
    again.resume(json.loads(json.dumps(notices.state_dict())), 2)
    assert said(rates(3e-6, 3e-6), again, first=3) == [
        (3, "resume", "resumed from the state saved after step 2"),
        (3, "learning_rate", "learning rate 1e-06 -> 3e-06"),
    ]
    old = RunNotices()
    old.resume({}, None)
    assert said([{}, {}], old) == [(1, "resume", "resumed from the state saved")]


def test_a_reference_that_is_synchronised_is_told():
    values = [{"run/reference_sync": value} for value in (0.0, 1.0, 0.0)]
    assert [(step, kind) for step, kind, _ in said(values)] == [(2, "reference_sync")]
