"""A rule that raises costs its own alerts: never the row, never another rule."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
import torch

from klmonitor import Monitor
from klmonitor.boundary import PATIENCE, REST
from klmonitor.record import read_run
from klmonitor.rules import ruleset
from klmonitor.rules.table import RULES

STEPS = 70
PER_PAIR = [rule for rule in RULES if rule.judge is not None]


def run(run_dir):
    """A run whose last steps hold one token of d = +8 and a KL of another order."""
    monitor = Monitor(run_dir)
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        q = -8 - torch.rand(16, 32, generator=generator)  # and p is no more than 1 anywhere
        d = (0.05 if step < STEPS - 3 else 1.5) * torch.randn(16, 32, generator=generator)
        monitor.observe(policy=q, ref=q + d)
        report = monitor.step(step)
    monitor.close()
    return report


def kinds_of(record):
    return {alert.kind for alert in record.alerts if alert.phase != "end"}


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """The kinds of alert of a run with which nothing is wrong."""
    run_dir = tmp_path_factory.mktemp("usual")
    run(run_dir)
    return kinds_of(read_run(run_dir))


@pytest.mark.parametrize("broken", [rule.kind for rule in PER_PAIR][:4])
def test_a_rule_that_raises_at_every_step(broken, usual, tmp_path, monkeypatch, caplog):
    def raises(reading, limits):
        raise ZeroDivisionError("a bug of ours")

    rules = tuple(replace(r, judge=raises) if r.kind == broken else r for r in RULES)
    monkeypatch.setattr(ruleset, "RULES", rules)
    with caplog.at_level(logging.WARNING):
        report = run(tmp_path)
    record = read_run(tmp_path)
    assert [one.step for one in record.reports] == list(range(STEPS)), "every row is there"
    assert kinds_of(record) == usual - {broken}, "the others alert"
    warned = [r for r in caplog.records if f"the rule {broken} failed" in r.getMessage()]
    assert len(warned) == 1
    assert "ZeroDivisionError: a bug of ours" in warned[0].getMessage()
    assert report.run_values["klmonitor/rule_errors"] == 1
    rows = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [row["run"]["klmonitor/rule_errors"] for row in rows] == [1] * STEPS
    assert rows[-1]["run"]["klmonitor/errors"] == PATIENCE, "then it rests"
    assert rows[-1]["run"]["klmonitor/active"] == 1, "numbers are not missing"


def test_a_rule_that_recovers_is_heard_again(tmp_path, monkeypatch):
    calls = []

    def judge(reading, limits):
        calls.append(reading)
        if len(calls) <= PATIENCE:
            raise ZeroDivisionError
        return ruleset.Finding(level=1, message="here it is")

    odd = replace(PER_PAIR[0], judge=judge)
    monkeypatch.setattr(ruleset, "RULES", (odd,))
    monitor = Monitor()
    q = -torch.rand(2, 8)
    for step in range(PATIENCE + REST + 1):
        monitor.observe(policy=q, ref=q - 0.1)
        report = monitor.step(step)
    assert [alert.message for alert in report.alerts] == ["policy_ref: here it is"]


def test_memory_that_fails_costs_the_alerts_alone(tmp_path, monkeypatch):
    """What is not one rule's own, such as learning from a step."""
    monkeypatch.setattr(ruleset.Track, "take", lambda *_: 1 / 0)
    run(tmp_path)
    record = read_run(tmp_path)
    assert len(record.reports) == STEPS
    assert all(r.run_values["klmonitor/rule_errors"] >= 1 for r in record.reports)
    assert record.reports[0].pairs["policy_ref"]["best"] == 3, "the verdict is made all the same"
