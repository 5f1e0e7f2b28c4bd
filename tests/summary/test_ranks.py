"""Ranks that differ or fail: training's own collectives go on, and reports say off or are right.

One launch of three processes runs every situation that leaves them alive.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from klmonitor import Monitor
from klmonitor.summary import reduce as module
from klmonitor.summary.intake import Intake
from klmonitor.summary.reduce import Reducer
from tests.helpers.ranks import run_ranks

WORLD, STEPS = 3, 4
LP = -torch.rand(4, 8, generator=torch.Generator().manual_seed(0))


def monitors(rank):
    """Name of a situation -> this rank's monitor in it."""
    names = ["math", "chat", "code"]
    return {
        "alike": lambda: Monitor(),
        "other groups": lambda: Monitor(groups=names[:1] if rank == 1 else names[1:2]),
        "groups in another order": lambda: Monitor(groups=names[rank:] + names[:rank]),
        "other prompts": lambda: Monitor(prompts=rank != 2),
        "fails in its preparation": lambda: Monitor(),
        "fails in agree": lambda: Monitor(),
        "fails after the collectives": lambda: Monitor(),
        "cannot have its memory": lambda: Monitor(),
        "fails before it reduces": lambda: Monitor(),
        "fails before it agrees": lambda: Monitor(),
        "cannot reduce": lambda: Monitor(),
        "disabled": lambda: Monitor(),
        "empty": lambda: Monitor(),
        "observes what fits nothing": lambda: Monitor(),
        "alike again": lambda: Monitor(),
    }


def failing_once(function):
    """The function, whose first call raises."""
    calls = []

    def wrapper(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 1:
            raise MemoryError("made by the test")
        return function(*arguments, **options)

    return wrapper


def sabotage(situation, rank, patch, step):
    """What goes wrong on rank 1, and when."""

    def fail(*_, **__):
        raise MemoryError("made by the test")

    if rank != 1:
        return
    if situation == "fails in its preparation" and step == 2:
        patch.setattr(Intake, "take", fail)
    if situation == "fails in agree":
        patch.setattr(Intake, "digest", fail)
    if situation == "fails before it reduces" and step == 2:
        patch.setattr(Reducer, "reduce", fail)
    if situation == "fails before it agrees" and step == 0:
        patch.setattr(Reducer, "agree", failing_once(Reducer.agree))
    if situation == "cannot reduce" and step == 0:
        patch.setattr(Reducer, "__init__", failing_once(Reducer.__init__))
    if situation == "cannot have its memory":
        patch.setattr(module, "_Buffers", fail)
    if situation == "fails after the collectives" and step == 2:
        patch.setattr(module._Buffers, "merged", fail)


def run(rank, world):
    """Of every situation: the reports in short, and whether training's own sums were right."""
    found = {}
    for situation, make in monitors(rank).items():
        with pytest.MonkeyPatch.context() as patch:
            if situation == "disabled" and rank == 1:
                patch.setenv("KLMONITOR_DISABLE", "1")
            monitor = make()
        said, right = [], True
        for step in range(STEPS):
            with pytest.MonkeyPatch.context() as patch:
                sabotage(situation, rank, patch, step)
                if not (situation == "empty" and rank == 1):
                    monitor.observe(policy=LP, ref=LP + 0.1, group="math")
                if situation == "observes what fits nothing" and rank == 1 and step == 1:
                    monitor.observe(policy=LP, ref=LP[:1])
                report = monitor.step(step)
            pair = report.pairs.get("policy_ref")
            said.append((report.health.active, None if pair is None else pair.tokens))
            ours = torch.tensor([float(rank + step)])
            dist.all_reduce(ours)  # training's
            right &= float(ours) == sum(range(world)) + world * step
        monitor.close()
        values = {} if pair is None else {k: v for k, v in pair.values.items() if "group" in k}
        found[situation] = said, right, monitor.errors, values
    return found


@pytest.fixture(scope="module")
def found():
    return run_ranks(WORLD, run)


def test_training_s_own_collectives_are_right_in_every_situation(found):
    for rank, situations in enumerate(found):
        for situation, (_, right, _, _) in situations.items():
            assert right, (rank, situation)


FULL = WORLD * LP.numel()
OFF, RIGHT = (False, None), (True, FULL)
WITHOUT_ONE = FULL - LP.numel()


@pytest.mark.parametrize(
    ("situation", "expected"),
    [
        ("alike", [RIGHT] * STEPS),
        ("groups in another order", [RIGHT] * STEPS),
        ("other groups", [OFF] * STEPS),
        ("other prompts", [OFF] * STEPS),
        ("fails in agree", [OFF] * STEPS),
        ("cannot have its memory", [OFF] * STEPS),
        ("fails before it agrees", [OFF] * STEPS),
        ("cannot reduce", [OFF] * STEPS),
        ("fails in its preparation", [RIGHT, RIGHT, (False, WITHOUT_ONE), RIGHT]),
        ("disabled", [(False, WITHOUT_ONE)] * STEPS),
        ("empty", [(True, WITHOUT_ONE)] * STEPS),
        ("observes what fits nothing", [RIGHT] * STEPS),
        ("alike again", [RIGHT] * STEPS),
    ],
)
def test_reports_say_off_or_are_right(found, situation, expected):
    for rank, situations in enumerate(found):
        assert situations[situation][0] == expected, rank


def test_a_rank_that_fails_after_the_collectives_has_no_report_of_that_step_alone(found):
    for rank, situations in enumerate(found):
        said = situations["fails after the collectives"][0]
        expected = (True, None) if rank == 1 else RIGHT
        assert said == [RIGHT, RIGHT, expected, RIGHT]


def test_a_rank_that_fails_before_the_collectives_takes_part_in_them_with_nothing(found):
    for rank, situations in enumerate(found):
        said = situations["fails before it reduces"][0]
        expected = (True, None) if rank == 1 else (False, WITHOUT_ONE)
        assert said == [RIGHT, RIGHT, expected, RIGHT]


def test_groups_in_another_order_are_the_same_groups(found):
    for situations in found:
        values = situations["groups in another order"][3]
        assert values["group/math/k1/mean"] == pytest.approx(-0.1)
        assert not [name for name in values if "chat" in name or "other" in name]


def test_failures_are_counted_where_they_were(found):
    for situation in ("fails in its preparation", "fails after the collectives"):
        assert [situations[situation][2] for situations in found] == [0, 1, 0]


def test_ranks_that_refused_each_other_never_reduce_again(found):
    """The reducer's own word, without a process: after the refusal nothing collective is left."""
    reducer = Reducer.__new__(Reducer)
    reducer.off = "ranks [1] are configured differently"
    monitor = Monitor()
    monitor._exchange._reducer = reducer
    monitor.observe(policy=LP, ref=LP)
    assert monitor.step(0).pairs == {}
    assert not monitor.step(1).health.errors
