"""Values of the run from verl's metrics; needs no verl."""

from __future__ import annotations

import numpy as np
import pytest

from klmonitor.numbers.runvalues import PREFIX
from klmonitor.report import Report
from klmonitor.rules.notices import RunNotices
from klmonitor_verl.runvalues import RunValues, updates_a_step


def test_the_rate_of_a_steps_update_stands_in_the_row_before():
    run = RunValues()
    run.read(1, {"actor/lr": np.float32(1e-6), "actor/kl_coef": 0.001})
    assert run.values() == {"beta": 0.001}
    run.read(2, {"actor/lr": 2e-6, "actor/reward_kl_penalty_coeff": 0.2})
    assert run.values() == {
        "learning_rate": pytest.approx(1e-6),
        "beta": 0.2,
        "step_of_run": 1,
    }


def test_the_updates_of_a_step_are_those_of_its_mini_batches():
    actor = {"ppo_mini_batch_size": 4, "ppo_epochs": 2}
    config = {"data": {"train_batch_size": 10}, "actor_rollout_ref": {"actor": actor}}
    assert updates_a_step(config) == 6
    run = RunValues(updates_a_step(config))
    run.read(3, {})
    assert run.values() == {"step_of_run": 2, "updates": 18}
    assert np.isnan(updates_a_step({}))


def test_what_is_no_number_is_unknown():
    run = RunValues()
    run.read(8, {"actor/lr": None, "actor/kl_coef": "x"})
    run.read(9, {})
    assert run.values() == {"step_of_run": 8}


@pytest.mark.parametrize(("first", "said"), [(1, []), (6, ["resumed after 5 optimizer steps"])])
def test_a_run_that_begins_is_none_that_was_resumed(first, said):
    run, notices = RunValues(), RunNotices()
    found = []
    for step in (first, first + 1):
        run.read(step, {"actor/lr": 1e-6})
        values = {PREFIX + name: value for name, value in run.values().items()}
        found += notices.read(Report(step=step, pairs={}, run_values=values))
    assert [notice.text for notice in found] == said
