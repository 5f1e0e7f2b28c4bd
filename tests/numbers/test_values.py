"""Values that are made when somebody looks: nobody can tell, and a calm step makes none."""

from __future__ import annotations

import copy
import pickle
from threading import Thread

import numpy as np
import pytest

from klmonitor import Monitor, Penalty
from klmonitor.numbers import assemble
from klmonitor.numbers.metrics import LATER
from klmonitor.report import Part, Values, joined, possible
from tests.helpers.steps import choose_pass


def counted(made, **values):
    """A part that notes how often it is made."""

    def make():
        made.append(1)
        return values

    return Part(tuple(values), make)


def test_a_part_is_made_once_by_who_asks_for_one_of_it():
    made, others = [], []
    values = Values({"a": 1.0}, [counted(made, b=2.0, c=3.0), counted(others, d=4.0)])
    assert possible(values) == ("a", "b", "c", "d")
    assert values["a"] == 1.0
    assert values.get("unknown") is None
    assert not made
    assert values["c"] == 3.0
    assert values["b"] == 2.0
    assert made == [1]
    assert not others
    assert dict(values) == {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    assert others == [1]
    with pytest.raises(KeyError, match="unknown"):
        values["unknown"]


def test_what_a_part_may_have_and_has_not_is_absent():
    values = Values({}, [Part(("a", "b"), lambda: {"a": 1.0})])
    assert "b" not in values
    assert list(values) == ["a"]
    assert len(values) == 1


def test_what_is_known_goes_before_what_is_made_and_joining_makes_nothing():
    made = []
    values = Values({"a": 1.0}, [counted(made, b=2.0)])
    more = values.joined({"b": 5.0}, counted(made, c=7.0))
    assert not made
    assert dict(more) == {"a": 1.0, "b": 5.0, "c": 7.0}
    assert values["b"] == 2.0
    assert joined({"a": 1.0}, {"b": 2.0}) == {"a": 1.0, "b": 2.0}


def test_a_copy_is_a_plain_table():
    values = Values({"a": 1.0}, [counted([], b=2.0)])
    for same in (copy.deepcopy(values), pickle.loads(pickle.dumps(values))):
        assert type(same) is dict
        assert same == values


def test_what_another_thread_makes_meanwhile_is_not_lost():
    class Meanwhile(dict):
        """Lets another thread look at "b", once, as soon as somebody copies it."""

        def keys(self):
            if not looked:
                looked.append(Thread(target=lambda: values["b"]))
                looked[0].start()
                looked[0].join()
            return super().keys()

        def __iter__(self):  # its own, so that copying asks for the keys
            return super().__iter__()

    looked = []
    values = Values(Meanwhile(x=0.0), [counted([], a=1.0), counted([], b=2.0)])
    assert values["a"] == 1.0
    assert values["b"] == 2.0
    assert set(values) == {"x", "a", "b"}


def test_threads_that_look_at_once_find_the_same():
    values = Values({"a": 1.0}, [Part((str(i),), lambda i=i: {str(i): i}) for i in range(200)])
    found = [dict] * 4

    def look(place):
        found[place] = dict(values)

    threads = [Thread(target=look, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(one == {"a": 1.0, **{str(i): i for i in range(200)}} for one in found)


def test_a_calm_step_makes_only_what_rules_and_trackers_read(monkeypatch):
    made = []
    original = assemble._computed

    def computed(table, step):
        made.append(table is LATER)
        return original(table, step)

    monkeypatch.setattr(assemble, "_computed", computed)
    draw, shape = np.random.default_rng(3), (16, 32)
    monitor, calm = Monitor(process_group=False, rules="quiet"), 0
    for step in range(60):
        policy = -draw.exponential(1.5, shape) - 0.01
        names = {"old": 0.02, "rollout": 0.001, "ref": 0.05}
        others = {name: policy + s * draw.normal(size=shape) for name, s in names.items()}
        monitor.observe(policy=policy, **{k: np.minimum(x, -1e-4) for k, x in others.items()})
        report = monitor.step(step)
        if not report.alerts:
            calm += 1
            assert not any(made), step
            assert set(report.pairs) == {"policy_ref", "old_policy", "rollout_old"}
        made.clear()
    assert calm > 40
    assert report.pairs["policy_ref"]["k2/se"] > 0
    assert any(made)


def test_a_report_that_is_looked_at_late_says_what_it_said_at_its_step(monkeypatch):
    """Sums, running sums, tokens and penalties of a step are not those of a later one."""

    def looked(report):
        return {
            name: (dict(pair.values), pair.explain(report.step), list(pair.extremes))
            for name, pair in report.pairs.items()
        }

    def reports():
        draw, term = np.random.default_rng(5), Penalty("k3", clamp=0.5, beta=0.04)
        monitor = Monitor(process_group=False, penalty=term)
        for step in range(30):
            policy = -draw.exponential(1.5, (12, 60)) - 0.01
            d = draw.standard_t(4, policy.shape) * (0.05 if step < 20 else 0.5)
            others = {"ref": policy + d, "old": policy + d / 9, "rollout": policy + d / 30}
            monitor.observe(policy=policy, **{k: np.minimum(x, -1e-4) for k, x in others.items()})
            yield monitor.step(step)

    choose_pass(monkeypatch, "plain")  # the other may come between, and differs in the last bits
    at_once, late = [looked(report) for report in reports()], list(reports())
    assert repr([looked(report) for report in late]) == repr(at_once)
