"""What an adapter tells of its run, and that ranks decide together."""

from types import SimpleNamespace

import pytest
import torch

from klmonitor.hooks.objective import Objective
from klmonitor.hooks.options import Options
from klmonitor.hooks.progress import Progress, bits_of, dropout_of
from klmonitor.hooks.watch import Watch
from tests.helpers.ranks import run_ranks


def at(*rates):
    return SimpleNamespace(param_groups=[{"lr": rate} for rate in rates])


def test_nothing_is_claimed_that_was_not_told():
    run = Progress()
    assert run.values() == {"reference_sync": 0.0}
    run.stepped()
    run.updates_at(at(1e-6))
    assert run.values() == {"learning_rate": 1e-6, "reference_sync": 0.0}
    run.stepped()
    assert "learning_rate" not in run.values(), "that of the step before"


def test_steps_are_counted_from_the_weights_that_training_started_from():
    run, seen = Progress(), []
    for start, steps in ((0, 2), (0, 1), (9, 2)):  # trained, trained again, resumed
        run.begin(start)
        for _ in range(steps):
            seen.append(run.values()["step_of_run"])
            run.stepped()
    assert seen == [0, 1, 2, 9, 10]


@pytest.mark.parametrize("when_generating", [False, True])
def test_a_sync_is_told_at_the_first_step_that_it_scores(when_generating):
    run, told = Progress(), []
    run.scores_when_generating = when_generating
    for step in range(6):
        if step in (0, 4):
            run.generated()
        told.append(run.values()["reference_sync"])
        run.stepped()
        if step == 1:
            run.synced()
    assert told == [0, 0, 0, 0, 1, 0] if when_generating else told == [0, 0, 1, 0, 0, 0]


def test_the_formats_and_the_dropout_of_both_sides_are_read():
    policy = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.1), torch.nn.Dropout(0))
    reference = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.3)).bfloat16().eval()
    attention = torch.nn.Linear(2, 2)
    attention.attention_dropout = 0.2
    assert (dropout_of(policy), dropout_of(reference), dropout_of(attention)) == (0.1, 0.0, 0.2)
    assert dropout_of(policy.eval()) == 0
    assert (bits_of(policy), bits_of(reference)) == (32, 16)
    run = Progress()
    run.begin(0, policy.train(), reference)
    assert run.values()["bits"] == 16
    run.updates_at(at(1e-6, 3e-6))
    assert run.values() == {
        "learning_rate": 3e-6,
        "step_of_run": 0,
        "reference_sync": 0,
        "bits": 16,
        "dropout": 0.1,
        "reference_dropout": 0.0,
    }


def decided_run(rank, world):
    def on_one_rank(report):
        return "as on no other rank" if rank == 1 and report.step == 2 else None

    options = {"run_dir": None, "rules": {"own": on_one_rank}, "on_alert": {"on_one_rank": "stop"}}
    watch = Watch(
        "a trainer",
        Options.parse(options),
        active=True,
        run_dir=None,
        pairs=None,
        objective=Objective(),
        text=None,
        main=rank == 0,
    )
    found = []
    for step in range(1, 5):
        watch.run.beta = 0.1 * (1 + rank)
        zeros = torch.zeros(2, 3) - 1.1
        watch.monitor.observe(policy=zeros, ref=zeros.clone())
        watch.finish_step(step)
        found.append(
            (sorted(watch.wanted()), watch.report.run_values["run/beta"], len(watch.report.alerts))
        )
    return found


def test_ranks_act_together_where_a_rule_finds_something_on_one_alone():
    """Without, one rank would stop and the other wait for it for ever."""
    first, second = run_ranks(2, decided_run)
    assert [wanted for wanted, *_ in first] == [[], [], ["stop"], []]
    assert [wanted for wanted, *_ in second] == [[], [], ["stop"], []]
    assert [alerts for *_, alerts in first] == [0, 0, 0, 0]
    assert [alerts for *_, alerts in second] == [0, 1, 0, 0]
    assert {beta for _, beta, _ in (*first, *second)} == {0.2}, "of two numbers the larger"
