"""Real runs of verl on Ray, FSDP2 and a CPU; minutes each (make test-verl).

Every pair's k1 and k3 against a recomputation from what verl's own functions were given; weights
and verl's metrics with and without klmonitor; what is left of a run that something was done to.
"""

from __future__ import annotations

import pytest

from klmonitor.record import read_run
from tests.integrations.raylab.marks import real_runs
from tests.integrations.raylab.truth import assert_mailbox_was_told_of_once, exact_lines

from .runs import RUNS, run
from .truth import lines

pytestmark = real_runs("verl")
WATCHED = [
    name for name, spec in RUNS.items() if spec.watched and not spec.fault and "stop" not in name
]
OURS = ("kl/", "klmonitor/")
TIMES = ("timing", "perf/", "actor/perf/")  # and memory


@pytest.mark.parametrize("name", WATCHED)
def test_every_pair_equals_the_truth(name):
    done = run(name)
    exact_lines(name, done, lines, RUNS[name].steps)
    report = read_run(done.run_dir).reports[-1]
    assert report.run_values["klmonitor/active"] == 1
    assert report.run_values["klmonitor/errors"] == report.run_values["klmonitor/dropped"] == 0
    assert all(pair["prompts"] >= 6 for pair in report.pairs.values())  # eight, less those rejected


@pytest.mark.parametrize("name", ["v1", "v0"])
def test_weights_and_their_metrics_are_the_same_bits_without_us(name):
    with_us, without = run(name), run(f"{name}-plain")
    hashes = [(done.folder / "weights").read_text() for done in (with_us, without)]
    assert hashes[0] == hashes[1]
    assert len(hashes[0].splitlines()) == RUNS[name].steps + 1
    for mine, theirs in zip(with_us.rows, without.rows, strict=True):
        native = {k: v for k, v in theirs["data"].items() if not k.startswith(TIMES)}
        found = {k: v for k, v in mine["data"].items() if not k.startswith((*TIMES, *OURS))}
        assert found == native
        assert len(native) > 50


def test_every_hook_raising_costs_nothing_but_numbers():
    done = run("v1-hooks-raise")
    assert done.rc == 0
    assert [row["step"] for row in done.rows] == [1, 2, 3]
    plain = run("v1-plain")
    assert (done.folder / "weights").read_text() == (plain.folder / "weights").read_text()
    told = [line for line in done.said if "planted" in line]
    assert 0 < len(told) <= 6  # one a boundary, of the driver and of the worker
    assert len({line.partition("klmonitor:")[2] for line in told}) == len(told)


def test_the_mailboxs_death_ends_the_workers_numbers_alone():
    assert_mailbox_was_told_of_once(run("v1-mailbox-killed"))


def test_a_worker_that_is_killed_leaves_a_record_that_can_be_read():
    """verl itself cannot go on without it: what is left is what had been closed before."""
    done = run("v1-worker-killed")
    reports = read_run(done.run_dir).reports
    assert [report.step for report in reports] == [1]
    assert set(reports[0].pairs) >= {"old_policy", "rollout_old"}
    assert "Traceback" in done.log  # verl's own


@pytest.mark.parametrize(("name", "steps"), [("v1", [1]), ("v0", [1, 2])])
def test_an_alert_stops_it(name, steps):
    """V1 after the step that asks for it, V0 after one more; until then nothing is changed."""
    done = run(f"{name}-stop")
    assert done.rc == 0, done.log[-2000:]
    assert [row["step"] for row in done.rows] == steps
    assert sum("on_alert: stop, as step 1 asks for it" in line for line in done.said) == 1
    reports = read_run(done.run_dir).reports
    assert [report.step for report in reports] == steps
    hashes = [(run(which).folder / "weights").read_text() for which in (f"{name}-stop", name)]
    assert len(hashes[0].splitlines()) == len(steps) + 1
    assert hashes[1].startswith(hashes[0])
