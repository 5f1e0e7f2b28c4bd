"""Who is missing is counted and named once."""

from __future__ import annotations

from klmonitor.boundary import HealthLog
from klmonitor.hooks.mailbox import Letter
from klmonitor.hooks.roll import Roll


def letters(*ranks, of):
    return [Letter(f"actor-{rank}", of, b"") for rank in ranks]


def test_a_worker_that_fails_and_comes_back():
    log = HealthLog()
    roll = Roll(log)
    assert roll.call(letters(0, 1, 2, of=3), 0, 1) == []
    (line,) = roll.call(letters(0, 2, of=3), 0, 2)
    assert line.startswith("step 2 lacks actor-1:")
    assert roll.call(letters(0, 2, of=3), 0, 3) == []
    (line,) = roll.call(letters(0, 1, 2, of=3), 0, 4)
    assert line == "step 4: actor-1 sent again"
    assert log.read().dropped == 2
    assert log.read().active


def test_all_of_many_workers_fail():
    log = HealthLog()
    roll = Roll(log)
    roll.call(letters(*range(12), of=12), 0, 1)
    (line,) = roll.call([], 0, 2)
    assert "actor-0, actor-1, actor-2 and 9 more" in line
    assert log.read().dropped == 12


def test_several_letters_of_one_worker_in_a_step_are_none_missing():
    roll = Roll(HealthLog())
    assert roll.call(letters(0, 1, 0, 1, of=2), 0, 1) == []


def test_a_critics_warm_up_is_no_silence_and_silence_after_it_is():
    log = HealthLog()
    roll = Roll(log, begins=2)
    assert roll.call([], 0, 1) == roll.call([], 0, 2) == []
    assert log.read().active
    (line,) = roll.call([], 0, 3)
    assert "no worker has sent anything" in line
    assert roll.call([], 0, 4) == []
    assert not log.read().active
    assert roll.call(letters(0, of=1), 0, 5) == []
    assert log.read().active


def test_what_was_thrown_away_is_said():
    log = HealthLog()
    assert "5 parts" in Roll(log).call(letters(0, of=1), 5, 1)[0]
    assert log.read().dropped == 5
