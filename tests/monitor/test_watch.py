"""`with monitor.watch(...)`: steps counted, ranks found, closed at the end whatever happens."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch

from klmonitor import Monitor
from klmonitor.monitor.loop import check_world
from klmonitor.record import read_run
from tests.helpers.ranks import run_ranks

SHAPE = (4, 8)


def batches(steps, seed=0):
    """Policy, reference, mask of each step."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        policy = -torch.rand(SHAPE, generator=generator, dtype=torch.float64) - 0.05
        moved = 0.1 * torch.rand(SHAPE, generator=generator, dtype=torch.float64)
        yield policy, policy - moved, torch.rand(SHAPE, generator=generator) < 0.8


def k1(policy, ref, mask):
    """Plain numpy."""
    return float(-(ref - policy).numpy()[mask.numpy()].mean())


def parameter():
    """One weight, with a gradient."""
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.ones(2)
    return weight


@pytest.mark.parametrize("by", ["optimizer", "hand"])
def test_steps_are_counted_from_one_and_hold_their_own_tokens(by, tmp_path):
    optimizer = torch.optim.SGD([parameter()], lr=0.5)
    given = list(batches(6))
    with Monitor(tmp_path).watch(optimizer if by == "optimizer" else None) as watch:
        for first, second in zip(given[::2], given[1::2], strict=True):
            for policy, ref, mask in (first, second):  # two micro-batches a step
                watch.observe(policy=policy, ref=ref, mask=mask)
            optimizer.step()
            if by == "hand":
                watch.step()
        assert watch.steps == watch.report.step == 3
    reports = read_run(tmp_path).reports
    assert [report.step for report in reports] == [1, 2, 3]
    for report, first, second in zip(reports, given[::2], given[1::2], strict=True):
        both = [torch.cat(pair) for pair in zip(first, second, strict=True)]
        assert report.pairs["policy_ref"].k1.mean == pytest.approx(k1(*both), rel=1e-12)
    rates = [report.run_values.get("run/learning_rate") for report in reports]
    assert rates == ([0.5] * 3 if by == "optimizer" else [None] * 3)


def test_the_rate_is_the_one_of_the_step_and_not_the_schedulers_next(tmp_path):
    optimizer = torch.optim.SGD([parameter()], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    with Monitor(tmp_path).watch(optimizer) as watch:
        for policy, ref, mask in batches(3):
            watch.observe(policy=policy, ref=ref, mask=mask)
            optimizer.step()
            scheduler.step()
    rates = [report.run_values["run/learning_rate"] for report in read_run(tmp_path).reports]
    assert rates == [1.0, 0.5, 0.25]


def test_an_error_of_the_loop_passes_through_and_leaves_a_whole_record(tmp_path):
    optimizer = torch.optim.SGD([parameter()], lr=0.5)
    with pytest.raises(ZeroDivisionError), Monitor(tmp_path).watch(optimizer) as watch:  # noqa: PT012
        for index, (policy, ref, mask) in enumerate(batches(5)):
            watch.observe(policy=policy, ref=ref, mask=mask)
            if index == 3:
                raise ZeroDivisionError("in the middle\nof a step")
            optimizer.step()
    run = read_run(tmp_path)
    assert [report.step for report in run.reports] == [1, 2, 3]
    assert [notice.text for notice in run.notices] == [
        "the loop ended with ZeroDivisionError: in the middle"
    ]
    optimizer.step()  # it is let go
    assert len(read_run(tmp_path).reports) == 3


def test_without_with_it_is_closed_by_hand_and_once(tmp_path):
    watch = Monitor(tmp_path).watch()
    policy, ref, mask = next(batches(1))
    watch.observe(policy=policy, ref=ref, mask=mask)
    watch.step()
    watch.close()
    watch.close()
    assert [report.step for report in read_run(tmp_path).reports] == [1]


def test_a_resumed_loop_goes_on_with_the_next_number(tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    given = list(batches(8))

    def loop(monitor, some, state=None):
        with monitor.watch(state=state) as watch:
            for policy, ref, mask in some:
                watch.observe(policy=policy, ref=ref, mask=mask)
                watch.step()
            return json.loads(json.dumps(watch.state_dict()))

    loop(Monitor(whole), given)
    state = loop(Monitor(halves), given[:5])
    loop(Monitor(halves), given[5:], state)
    found, wanted = read_run(halves).reports, read_run(whole).reports
    assert [report.step for report in found] == list(range(1, 9))
    for mine, theirs in zip(found, wanted, strict=True):
        for name in ("k1/mean", "k3/running_var"):
            assert mine.pairs["policy_ref"][name] == theirs.pairs["policy_ref"][name]


def test_the_first_number_can_be_said():
    watch = Monitor().watch(start=0)
    assert watch.step().step == 0
    with pytest.raises(TypeError, match="'float'"):
        Monitor().watch(start=1.5)


def test_an_evaluation_counts_no_step(tmp_path):
    with Monitor(tmp_path).watch() as watch:
        for policy, ref, mask in batches(2):
            watch.observe(policy=policy, ref=ref, mask=mask)
            watch.step()
            watch.observe(policy=policy, ref=ref, mask=mask, phase="eval")
            assert watch.step(phase="eval").phase == "eval"
    assert [(r.step, r.phase) for r in read_run(tmp_path).reports if r.phase == "train"] == [
        (1, "train"),
        (2, "train"),
    ]


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (0, "no step was closed: call step() once per optimizer step, or give the optimizer"),
        (2, "3 micro-batches after step 2 are left out"),
    ],
)
def test_what_no_step_closed_is_said(steps, said, caplog):
    with Monitor().watch() as watch:
        for index, (policy, ref, mask) in enumerate(batches(steps + 3)):
            watch.observe(policy=policy, ref=ref, mask=mask)
            if index < steps:
                watch.step()
    found = [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]
    assert [line for line in found if "step" in line] == [f"klmonitor: {said}"]


def test_a_step_by_hand_beside_an_optimizer_is_left_out_and_said_once(caplog):
    optimizer = torch.optim.SGD([parameter()], lr=0.5)
    with Monitor().watch(optimizer) as watch:
        for policy, ref, mask in batches(3):
            watch.observe(policy=policy, ref=ref, mask=mask)
            optimizer.step()
            assert watch.step() is watch.report
    assert watch.steps == 3
    said = [record.getMessage() for record in caplog.records if "by hand" in record.getMessage()]
    assert len(said) == 1


class NoOptimizer:
    """Steps, and is none of torch's."""

    def step(self):
        """Nothing."""


def test_an_optimizer_whose_steps_cannot_be_seen_is_refused_with_what_to_do():
    with pytest.raises(TypeError, match=r"NoOptimizer, no .*call watch.step\(\) once per"):
        Monitor().watch(NoOptimizer())


def test_a_damaged_state_is_refused_at_once():
    with pytest.raises(ValueError, match="version None"):
        Monitor().watch(state={})


def test_a_monitor_made_before_its_process_group_is_refused():
    with pytest.raises(ValueError, match=r"made for 1 process and there are 4: make it after"):
        check_world(1, 4)


def test_one_process_of_many_that_do_not_know_of_each_other_is_told(monkeypatch, caplog):
    monkeypatch.setenv("WORLD_SIZE", "2")
    Monitor(process_group=False).watch()
    assert not caplog.text, "a driver whose workers send parts"
    Monitor().watch()
    assert "each process is watched alone" in caplog.text


def test_switched_off_the_loop_runs_and_nothing_is_written(monkeypatch, tmp_path):
    monkeypatch.setenv("KLMONITOR_DISABLE", "1")
    optimizer = torch.optim.SGD([parameter()], lr=0.5)
    with Monitor(tmp_path / "run").watch(optimizer) as watch:
        for policy, ref, mask in batches(2):
            watch.observe(policy=policy, ref=ref, mask=mask)
            optimizer.step()
    assert not watch.report.health.active
    assert not (tmp_path / "run").exists()


def rank_of_a_loop(rank, world, folder):
    """Every rank with tokens of its own."""
    optimizer = torch.optim.SGD([parameter()], lr=0.5)
    with Monitor(folder).watch(optimizer) as watch:
        for policy, ref, mask in batches(3, seed=rank):
            watch.observe(policy=policy, ref=ref, mask=mask)
            optimizer.step()
        return [watch.report.pairs["policy_ref"].k1.mean, watch.steps]


def test_ranks_are_found(tmp_path):
    found = run_ranks(2, rank_of_a_loop, str(tmp_path))
    assert found[0] == found[1]
    last = [list(batches(3, seed=rank))[-1] for rank in range(2)]
    both = [torch.cat(pair) for pair in zip(*last, strict=True)]
    assert found[0] == [pytest.approx(k1(*both), rel=1e-12), 3]
    reports = read_run(tmp_path).reports
    assert [report.step for report in reports] == [1, 2, 3]
    assert not np.isnan(reports[-1].pairs["policy_ref"].k1.mean)
