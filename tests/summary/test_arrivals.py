"""Micro-batches on their way to the host: in their order, none lost, nothing raised, no waiting."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from klmonitor import Collector, Monitor
from klmonitor.summary import arrivals, observer
from klmonitor.summary.arrivals import Arrival, away, sent
from tests.helpers.ranks import run_ranks
from tests.helpers.steps import wait_for_kernels


class Event:
    """Reached when it is told to, or when somebody waits for it."""

    def __init__(self, error=None):
        self.reached, self.waited, self.error = False, 0, error

    def query(self):
        if self.error:
            raise self.error
        return self.reached

    def synchronize(self):
        if self.error:
            raise self.error
        self.waited += not self.reached
        self.reached = True


def observed(seed, sequences=4, width=30):
    rng = np.random.default_rng(seed)
    q = torch.from_numpy(-rng.exponential(1.0, (sequences, width)))
    p = q + torch.from_numpy(rng.normal(0, 0.3, q.shape))
    return {
        "policy": q,
        "ref": p,
        "mask": torch.from_numpy(rng.random(q.shape) < 0.9),
        "token_ids": rng.integers(0, 500, q.shape),
        "prompt_ids": [f"prompt {i // 2}" for i in range(sequences)],
        "group": ["math"] * sequences,
    }


@pytest.fixture
def on_its_way(monkeypatch):
    """As if log-probs were on a GPU: a switch, and the events that were recorded."""
    events, failing = [], []
    wait_for_kernels()

    def copies(given):
        if failing:
            raise failing.pop()
        events.append(Event())
        return Arrival(sent(given).given, [events[-1]])

    monkeypatch.setattr(observer, "away", lambda values: True)
    monkeypatch.setattr(observer, "sent", copies)
    return events, failing


def numbers(report):
    pairs = report.pairs
    return {(pair, name): value for pair in pairs for name, value in pairs[pair].values.items()}, [
        (t.micro_batch, t.sequence, t.position) for pair in pairs for t in pairs[pair].extremes
    ]


def reference(seeds):
    monitor = Monitor(groups=("math",), strict=True)
    for seed in seeds:
        monitor.observe(**observed(seed))
    return numbers(monitor.step(0))


def test_a_step_is_that_of_its_micro_batches_in_their_order(on_its_way):
    events, _ = on_its_way
    monitor = Monitor(groups=("math",), strict=True)
    for seed in range(5):
        monitor.observe(**observed(seed))
        if seed == 3:
            events[1].reached = events[3].reached = True
    assert [event.waited for event in events] == [1, 0, 0, 0, 0], "only setup waits"
    values, tokens = numbers(monitor.step(0))
    assert [event.waited for event in events] == [1, 0, 1, 0, 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observer, "away", away)
        expected_values, expected_tokens = reference(range(5))
    np.testing.assert_equal(values, expected_values)
    assert tokens == expected_tokens


def test_what_has_arrived_is_added_by_the_next_call(on_its_way):
    events, _ = on_its_way
    collector = Collector()
    for seed in range(3):
        collector.observe(**observed(seed))
    events[1].reached = True
    added = []
    collector._intake.add = lambda *given, **_: added.append(given)
    collector.observe(**observed(3))
    assert len(added) == 1
    assert torch.equal(added[0][0]["policy"], observed(1)["policy"])


def test_what_comes_behind_on_the_host_neither_overtakes_nor_waits(on_its_way, monkeypatch):
    events, _ = on_its_way
    monitor = Monitor(groups=("math",), strict=True)
    for seed in range(3):
        monitor.observe(**observed(seed))
    monkeypatch.setattr(observer, "away", away)
    monitor.observe(**observed(3))
    assert [event.waited for event in events] == [1, 0, 0, 0]
    found = numbers(monitor.step(0))
    np.testing.assert_equal(found[0], reference(range(4))[0])
    assert found[1] == reference(range(4))[1]


def test_memory_of_the_caller_may_be_written_to(on_its_way):
    monitor = Monitor(groups=("math",), strict=True)
    for seed in range(3):
        given = observed(seed)
        monitor.observe(**given)
        for name in ("policy", "ref"):
            given[name].zero_()
        given["token_ids"][:] = 0
        given["prompt_ids"].clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observer, "away", away)
        expected = reference(range(3))
    np.testing.assert_equal(numbers(monitor.step(0))[0], expected[0])


def test_failures_on_the_way_are_counted_and_the_rest_arrives(on_its_way, caplog):
    events, failing = on_its_way
    monitor = Monitor(groups=("math",))
    for seed in range(6):
        if seed == 2:
            failing.append(RuntimeError("no pinned memory"))
        monitor.observe(**observed(seed))
        if seed == 4:
            events[-1].error = RuntimeError("device-side assert")
    report = monitor.step(0)
    assert monitor.errors == 2
    assert report.health.errors == 2
    tokens = sum(int(observed(seed)["mask"].sum()) for seed in (0, 1, 3, 5))
    assert report.pairs["policy_ref"].tokens == tokens
    told = [record.message for record in caplog.records if "failed" in record.message]
    assert len(told) == 2
    assert "copying log-probs to the host failed" in told[0]


def test_monitoring_is_inactive_where_nothing_can_be_copied(on_its_way):
    _, failing = on_its_way
    monitor = Monitor()
    monitor.observe(**{**observed(0), "group": None})
    for seed in range(30):
        failing.append(RuntimeError("no pinned memory"))
        monitor.observe(**{**observed(seed), "group": None})
    assert not monitor.active
    assert monitor.step(0).run_values["klmonitor/active"] == 0


def test_it_is_active_again_where_nothing_has_to_be_copied_any_more(on_its_way, monkeypatch):
    _, failing = on_its_way
    monitor = Monitor()
    for seed in range(8):
        failing.extend([RuntimeError("no pinned memory")] * bool(seed))
        monitor.observe(**{**observed(seed), "group": None})
    assert not monitor.active
    monkeypatch.setattr(observer, "away", away)
    monitor.observe(**{**observed(9), "group": None})
    assert monitor.active
    assert monitor.step(0).run_values["klmonitor/active"] == 1


def test_two_threads_may_look_at_once(on_its_way):
    events, _ = on_its_way
    monitor = Monitor(groups=("math",), strict=True)
    for seed in range(2):
        monitor.observe(**observed(seed))

    def query():
        monitor._land(wait=True)
        return True

    events[1].query = query
    monitor._land(wait=False)
    tokens = sum(int(observed(seed)["mask"].sum()) for seed in range(2))
    assert monitor.step(0).pairs["policy_ref"].tokens == tokens


def test_nothing_is_kept_of_a_step_that_nobody_closes(on_its_way):
    monitor = Monitor(groups=("math",))
    for seed in range(3):
        monitor.observe(**observed(seed))
    monitor.close()
    assert not monitor._coming


def of_rank(rank, world):
    """Two micro-batches, of which on rank 0 the second never arrives."""
    monitor = Monitor(groups=("math",), strict=rank == 0)
    monitor.observe(**observed(2 * rank))
    if rank == 0:
        monitor._coming.append(Arrival(None, [Event(RuntimeError("device-side assert"))]))
    else:
        monitor.observe(**observed(1))
    try:
        report = monitor.step(0)
    except RuntimeError as raised:
        return str(raised)
    return report.pairs["policy_ref"].tokens, report.health.active


def test_what_fails_on_its_way_is_raised_behind_the_collectives():
    raised, (tokens, active) = run_ranks(2, of_rank, timeout=60)
    assert raised == "device-side assert"
    assert tokens == sum(int(observed(seed)["mask"].sum()) for seed in (1, 2))
    assert not active, "a rank sent no summary"


def test_setup_waits_and_refuses(on_its_way):
    given = observed(0)
    given["mask"] = given["mask"][:, 1:]
    with pytest.raises(ValueError, match="mask has shape"):
        Monitor(groups=("math",)).observe(**given)


def test_what_is_given_twice_is_copied_once():
    mask, x = torch.ones(2, 3, dtype=torch.bool), np.arange(4)
    given = {"mask": {"policy_ref": mask, "old_policy": mask}, "x": [x, (x, "math", None)]}
    rows = [torch.ones(2), torch.ones(3)]
    given["rows"] = {"policy_ref": rows, "old_policy": rows}
    host = sent(given).wait()
    assert host["mask"]["policy_ref"] is host["mask"]["old_policy"]
    assert host["rows"]["policy_ref"] is host["rows"]["old_policy"]
    assert host["mask"]["policy_ref"] is not mask
    assert host["x"][0] is host["x"][1][0]
    assert host["x"][1][1:] == ["math", None]
    assert sent(given).here()


@pytest.mark.parametrize("error", [None, RuntimeError("device-side assert")])
def test_an_arrival_does_not_wait_to_be_asked(error):
    arrival = Arrival("given", [Event(), Event(error)])
    assert arrival.here() is False
    arrival.events[0].reached = True
    assert arrival.here() is (error is not None)
    assert [event.waited for event in arrival.events] == [0, 0]


def test_log_probs_elsewhere_are_seen_in_every_layout():
    here, there = torch.zeros(3), torch.zeros(3, device="meta")
    assert not away([here, None, [here, here], np.zeros(3), "?"])
    assert away([here, there])
    assert away([[here, there]])
    assert arrivals._joins([here, here]) is False


def test_a_tensor_that_cannot_be_asked_is_no_error_of_training():
    class Evil(torch.Tensor):
        @property
        def is_cpu(self):
            raise RuntimeError("evil")

    monitor = Monitor(groups=("math",))
    monitor.observe(**observed(0))
    evil = torch.zeros(4, 30).as_subclass(Evil)
    monitor.observe(**{**observed(1), "policy": evil})
    assert monitor.errors == 1


@pytest.mark.parametrize("layout", ["rows", "packed"])
def test_nothing_is_made_on_a_default_device(layout):
    reports = []
    for device in ("cpu", "meta"):
        given = observed(3)
        group, version = ["math", "other"] * 2, 3
        if layout == "packed":
            given = {name: x.flatten() if hasattr(x, "flatten") else x for name, x in given.items()}
            given["cu_seqlens"] = torch.tensor([0, 30, 50, 80, 120])
        given |= {"group": group, "version": version}
        with torch.device(device):
            monitor, collector = (
                made(groups=("math",)) for made in (partial(Monitor, strict=True), Collector)
            )
            for one in (monitor, collector):
                one.observe(**given)
            monitor.add_part(collector.take())
            reports.append(monitor.step(0))
        assert monitor.errors == collector.log.read().errors == 0
    np.testing.assert_equal(*map(numbers, reports))
