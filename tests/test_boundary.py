"""The one boundary: catches, counts, tells once, rests, comes back."""

from __future__ import annotations

import copy
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klmonitor import boundary as module
from klmonitor.boundary import PATIENCE, REST, Boundary, HealthLog, cause, each


def fail():
    raise RuntimeError("down\nand more")


def test_what_raises_is_counted_and_told_once(caplog):
    log = HealthLog()
    guard = Boundary("the sink X", log, patience=None)
    with caplog.at_level(logging.WARNING):
        assert [guard(fail) for _ in range(20)] == [None] * 20
    assert (log.read().errors, guard.failures, guard.resting) == (20, 20, False)
    (record,) = caplog.records
    assert record.getMessage() == (
        "klmonitor: the sink X failed, training goes on without it (RuntimeError: down); further "
        "failures are counted in klmonitor/errors"
    )


def test_what_is_counted_nowhere_is_not_said_to_be(caplog):
    guard = Boundary("the X kernel", None, done_without="the plain pass does its work")
    with caplog.at_level(logging.WARNING):
        assert [guard(fail) for _ in range(3)] == [None] * 3
    (record,) = caplog.records
    assert record.getMessage() == (
        "klmonitor: the X kernel failed, the plain pass does its work (RuntimeError: down)"
    )


def test_it_rests_after_its_patience_and_comes_back():
    log, calls = HealthLog(), []
    guard = Boundary("loss", log, vital=True)

    def work():
        calls.append(len(calls))
        if len(calls) <= PATIENCE:
            fail()
        return "done"

    for _ in range(PATIENCE):
        assert guard(work) is None
    assert guard.resting
    assert (log.read().active, log.read().why) == (False, "loss: RuntimeError: down")
    assert [guard(work) for _ in range(REST)] == [None] * REST
    assert len(calls) == PATIENCE, "left alone"
    assert guard(work) == "done"
    assert (guard.resting, log.read().active, log.read().why) == (False, True, "")


def test_a_success_resets_the_count():
    """Failures now and then are no reason to rest."""
    guard = Boundary("x", HealthLog())
    for _ in range(10):
        for _ in range(PATIENCE - 1):
            guard(fail)
        assert guard(lambda: 1) == 1
    assert not guard.resting


def test_one_that_fails_again_after_its_rest_rests_again():
    guard, calls = Boundary("x", HealthLog(), patience=2, rest=3), []

    def work():
        calls.append(1)
        fail()

    for _ in range(12):
        guard(work)
    assert len(calls) == 2 + 2, "two, a rest of three, one, a rest of three, one, ..."


def test_always_is_not_left_out():
    guard = Boundary("x", HealthLog(), patience=1)
    guard(fail)
    assert guard.resting
    assert guard(lambda: 1) is None
    assert guard.always(lambda: 1) == 1
    assert not guard.resting


def test_what_is_not_vital_leaves_the_numbers_active():
    log = HealthLog()
    guard = Boundary("the sink X", log, patience=1)
    guard(fail)
    assert guard.resting
    assert log.read().active


def test_strict_raises_and_an_interrupt_always_does():
    with pytest.raises(RuntimeError, match="down"):
        Boundary("x", HealthLog(), strict=True)(fail)

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Boundary("x", HealthLog())(interrupted)
    assert Boundary("x", HealthLog(), catch=BaseException)(interrupted) is None


def test_neither_a_log_nor_an_error_s_text_gets_through(monkeypatch):
    class UnspeakableError(Exception):
        def __str__(self):
            raise ValueError("no words")

    def raise_it():
        raise UnspeakableError

    def refuse(*args, **kwargs):
        raise OSError("the log takes nothing")

    monkeypatch.setattr(module.logger, "warning", refuse)
    log = HealthLog()
    assert Boundary("x", log)(raise_it) is None
    assert log.read().errors == 1
    assert cause(UnspeakableError()) == "UnspeakableError"


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 4), st.integers(1, 6))
def test_every_call_is_made_left_out_or_counted(outcomes, patience, rest):
    log = HealthLog()
    guard = Boundary("x", log, patience=patience, rest=rest)
    made = failed = 0

    def work(good):
        nonlocal made, failed
        made += 1
        if not good:
            failed += 1
            fail()
        return True

    results = [guard(work, good) for good in outcomes]
    assert log.read().errors == guard.failures == failed
    assert results.count(True) == made - failed
    if all(outcomes):
        assert made == len(outcomes)


def test_a_log_can_be_copied():
    log = HealthLog()
    log.failed(3)
    log.lost()
    copied = copy.deepcopy(log)
    copied.failed()
    assert (log.read().errors, copied.read().errors, copied.read().dropped) == (3, 4, 1)


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), max_size=60))
def test_many_calls_are_as_one_through_each_boundary(rounds):
    """Whatever fails when: results, counts, rests and what is told are the same."""
    states = []
    for together in (True, False):
        log = HealthLog()
        guards = [Boundary(f"rule {i}", log, patience=2, rest=3) for i in range(3)]
        found = []
        for number, failing in enumerate(rounds):

            def call(given, fails):
                return fail() if fails else given

            calls = [(g, call, f) for g, f in zip(guards, failing, strict=True)]
            if together:
                found.append(list(each(calls, number)))
            else:
                found.append([guard(one, number, fails) for guard, one, fails in calls])
            found.append([(g.failing, g.resting, g.failures) for g in guards])
        states.append((found, log.read()))
    assert states[0] == states[1]
