"""Real runs of OpenRLHF on Ray, DeepSpeed and a CPU; minutes each (make test-openrlhf).

Every pair's k1 and k3 against a recomputation from what OpenRLHF's own functions were given;
weights and its metrics with and without klmonitor; what is left of a run that something happened
to.
"""

from __future__ import annotations

import pytest

from klmonitor.record import read_run
from tests.integrations.raylab.marks import real_runs
from tests.integrations.raylab.truth import assert_mailbox_was_told_of_once, exact_lines

from .runs import RUNS, run
from .truth import lines

pytestmark = real_runs("openrlhf")
MODES = ("reward", "loss", "reward-2ranks", "loss-2ranks", "unbiased")
OURS = ("kl/", "klmonitor/")


@pytest.mark.parametrize("name", MODES)
def test_every_pair_equals_the_truth(name):
    done = run(name)
    found = exact_lines(name, done, lines, RUNS[name].steps)
    pairs = {line.metric.partition("/")[0] for line in found}
    assert ("policy_ref" in pairs) == RUNS[name].in_loss
    assert pairs >= {"old_policy", "old_ref"}
    record = read_run(done.run_dir)
    report = record.reports[-1]
    assert set(report.pairs) == pairs
    assert report.run_values["klmonitor/active"] == 1
    assert report.run_values["klmonitor/errors"] == report.run_values["klmonitor/dropped"] == 0
    assert {pair["prompts"] for pair in report.pairs.values()} == {8}
    row = done.rows[-1]["data"]
    assert row["kl/old_policy/k1/mean"] == report.pairs["old_policy"].k1.mean
    told = [line for line in done.said if "steps" in line or "klmonitor report" in line]
    assert told, "the record was closed, and said so"


@pytest.mark.parametrize(
    ("name", "pair", "term"),
    [
        ("reward", "old_ref", "0.001 x rho*k1 in the return to go, clamped at 10"),
        ("loss", "policy_ref", "0.001 x k3 in the loss, clamped at 10: the forward KL's gradient"),
        ("unbiased", "policy_ref", "rho*k3 in the loss, rho detached, straight through"),
    ],
)
def test_the_receipt_names_the_term(name, pair, term):
    report = read_run(run(name).run_dir).reports[-1]
    assert [one for one in report.pairs if report.pairs[one].penalty] == [pair]
    assert term in str(report.pairs[pair].penalty)
    assert term in report.explain()
    assert report.pairs[pair]["penalty/beta"] == pytest.approx(0.001)


@pytest.mark.parametrize("name", ["reward", "loss"])
def test_weights_and_their_metrics_are_the_same_bits_without_us(name):
    with_us, without = run(name), run(f"{name}-plain")
    hashes = [(done.folder / "weights").read_text() for done in (with_us, without)]
    assert hashes[0] == hashes[1]
    assert len(hashes[0].splitlines()) == RUNS[name].steps
    assert len(without.rows) == RUNS[name].steps
    for mine, theirs in zip(with_us.rows, without.rows, strict=True):
        native = {k: v for k, v in theirs["data"].items() if not k.startswith("timing")}
        found = {k: v for k, v in mine["data"].items() if not k.startswith(("timing", *OURS))}
        assert found == native
        assert len(native) >= 20


def test_every_hook_raising_costs_nothing_but_numbers():
    done, plain = run("hooks-raise"), run("loss-plain")
    assert done.rc == 0
    assert [row["step"] for row in done.rows] == [1, 2, 3]
    assert (done.folder / "weights").read_text() == (plain.folder / "weights").read_text()
    told = [line.partition("klmonitor:")[2] for line in done.said if "planted" in line]
    assert 0 < len(told) == len(set(told)) <= 6  # one a boundary, of the driver and of the worker


def test_the_mailboxs_death_ends_the_workers_numbers_alone():
    assert_mailbox_was_told_of_once(run("mailbox-killed"))


def test_a_worker_that_is_killed_leaves_a_record_that_can_be_read():
    """OpenRLHF itself cannot go on without it: what is left is what had been closed before."""
    done = run("worker-killed")
    assert done.rc != 0
    reports = read_run(done.run_dir).reports
    assert [report.step for report in reports] == [1]
    assert set(reports[0].pairs) >= {"old_policy", "old_ref"}
    assert "ActorDiedError" in done.log  # OpenRLHF's own end


def test_an_alert_stops_and_saves_at_once_and_the_run_can_be_resumed():
    done = run("stop")
    assert done.rc == 0
    assert [row["step"] for row in done.rows] == [1]
    assert any("on_alert: stop" in line for line in done.said)
    assert (done.folder / "checkpoints/_actor/global_step1").is_dir()
    again = run("resume")
    assert again.rc == 0
    assert [row["step"] for row in again.rows] == [2, 3, 4]
    assert any("continues from the checkpoint" in line for line in again.said)
    reports = read_run(again.run_dir).reports
    assert [report.step for report in reports] == [1, 2, 3, 4]


def test_an_alert_stops_a_trainer_whose_samples_come_from_another_process():
    done = run("async-stop")
    assert done.rc == 0
    assert 1 <= len(done.rows) < RUNS["async-stop"].steps
