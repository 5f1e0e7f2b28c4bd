"""`Monitor.step(run=...)`: what is known of the run, in a loop of one's own."""

import json
import math

import pytest
import torch

from klmonitor import Monitor
from klmonitor.numbers.runvalues import PREFIX, TABLE, checked, decode, encode
from klmonitor.record import read_run
from klmonitor.replay import replay

KNOWN = {"learning_rate": 1e-6, "beta": 0.04, "step_of_run": 0}


def observe(monitor, size=0.01, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = -torch.rand(16, 32, generator=generator, dtype=torch.double) - 1
    p = q + size * torch.randn(16, 32, generator=generator, dtype=torch.double)
    monitor.observe(policy=q, ref=p)


def kinds(reports):
    return [(alert.step, alert.kind) for report in reports for alert in report.alerts]


def test_values_are_in_the_report_and_in_the_record(tmp_path):
    monitor = Monitor(tmp_path)
    reports = []
    for step in (1, 2, 3):
        observe(monitor, seed=step)
        known = {**KNOWN, "step_of_run": step, "beta": None, "updates": math.nan}
        reports.append(monitor.step(step, run=known if step < 3 else None))
    monitor.close()
    assert {k: v for k, v in reports[0].run_values.items() if k.startswith(PREFIX)} == {
        "run/learning_rate": 1e-6,
        "run/step_of_run": 1.0,
    }
    assert not any(name.startswith(PREFIX) for name in reports[2].run_values), "nobody said"
    found = read_run(tmp_path).reports
    assert [one.run_values for one in found] == [one.run_values for one in reports]


def test_what_a_run_tells_is_judged_and_replayed_alike(tmp_path):
    monitor = Monitor(tmp_path)
    reports = []
    for step in (1, 2, 3):
        observe(monitor, size=0.1, seed=step)
        reports.append(monitor.step(step, run={**KNOWN, "beta": -0.1, "step_of_run": step - 1}))
    monitor.close()
    assert kinds(reports) == [(1, "nonzero_start"), (1, "negative_penalty")]
    again = [(alert.step, alert.kind) for alert in replay(read_run(tmp_path).reports)]
    assert sorted(again) == sorted(kinds(reports))


def test_a_later_step_or_sixteen_bits_are_no_wrong_start():
    for known in ({"step_of_run": 30}, {"step_of_run": 0, "bits": 16}, {}):
        monitor = Monitor()
        observe(monitor, size=0.02)
        assert kinds([monitor.step(1, run=known)]) == []


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        ({"learning_rat": 1.0}, ValueError, "'learning_rat': did you mean 'learning_rate'"),
        ({"lr2": 1.0}, ValueError, "Choose from learning_rate, beta"),
        ({"beta": "high"}, TypeError, r"run\['beta'\] is 'high': give a number"),
        ([1.0], TypeError, "give a table"),
    ],
)
def test_what_cannot_be_is_refused_at_the_first_step_and_counted_later(run, error, message):
    monitor = Monitor()
    with pytest.raises(error, match=message):
        monitor.step(1, run=run)
    observe(monitor)
    monitor.step(1, run=KNOWN)
    observe(monitor)
    report = monitor.step(2, run=run)
    assert monitor.errors == 1
    assert report.pairs["policy_ref"].tokens == 512, "nothing else is lost"
    assert not any(name.startswith(PREFIX) for name in report.run_values)


def test_ranks_learn_the_largest():
    mine, other = checked({"beta": 0.1, "learning_rate": 0}), checked({"beta": torch.tensor(0.2)})
    largest = [max(both) for both in zip(encode(mine), encode(other), strict=True)]
    assert decode(largest) == {"run/learning_rate": 0.0, "run/beta": pytest.approx(0.2)}
    assert decode(encode({})) == {}
    assert json.dumps(checked(dict.fromkeys(TABLE, True)))


def test_a_reference_that_is_loaded_anew_at_a_resume_is_told():
    """After resuming, the reference is the policy of the checkpoint: KL is 0 there, then grows."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(200, 300, generator=generator, dtype=torch.double)
    base = torch.randn(200, 300, generator=generator, dtype=torch.double)

    def policy_at(step):
        return base + 0.03 * step**0.5 * noise

    def observe_at(monitor, step, reference):
        context = torch.randint(0, 200, (1024,), generator=generator)
        q = policy_at(step)[context].log_softmax(-1)
        token = torch.multinomial(q.exp(), 1, generator=generator)
        p = reference[context].log_softmax(-1)
        both = (x.gather(-1, token).view(32, 32) for x in (q, p))
        monitor.observe(**dict(zip(("policy", "ref"), both, strict=True)))
        return monitor.step(step)

    monitor = Monitor()
    before = [observe_at(monitor, step, base) for step in range(1, 60)]
    resumed = Monitor()
    resumed.load_state_dict(json.loads(json.dumps(monitor.state_dict())))
    after = [observe_at(resumed, step, policy_at(60)) for step in range(60, 75)]
    assert kinds(before) == []
    assert kinds(after) == [(61, "fall")]
    assert "the reference is the policy itself" in after[1].alerts[0].means
