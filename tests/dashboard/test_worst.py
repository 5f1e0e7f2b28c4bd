"""`klmonitor explain`: any step of a record says what the live report said."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from klmonitor import Monitor, Penalty
from klmonitor.cli import main
from klmonitor.dashboard.worst import chosen_step
from klmonitor.record import RunRecord, read_run
from tests.helpers.reports import small_report

JUMP = 24


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose KL jumps, one step of which one token carries; and its live reports."""
    directory = tmp_path_factory.mktemp("explain") / "run"
    live = {}
    generator = torch.Generator().manual_seed(1)
    monitor = Monitor(directory, process_group=False, penalty=Penalty("k3", beta=0.04))
    for step in range(1, 31):
        q = -0.01 - torch.rand(16, 32, generator=generator) * 3
        p = q + (0.05 if step < JUMP else 1.0) * torch.randn(16, 32, generator=generator)
        p = p.clamp(max=-1e-3)
        if step == 12:
            q[3, 5], p[3, 5] = -9.0, -0.5
        monitor.observe(policy=q, ref=p, old=q - 0.001, token_ids=torch.arange(512).view(16, 32))
        live[step] = monitor.step(step)
        monitor.flush()
    monitor.close()
    return directory, live


def test_every_step_says_what_it_said_live(run, capsys):
    directory, live = run
    for step, report in live.items():
        assert main(["explain", str(directory), "--step", str(step)]) == 0
        said = capsys.readouterr().out
        assert report.explain() in said
        assert all(alert.text() in said for alert in report.alerts)
        assert f"step {step}: as asked" in said


def test_as_json_it_has_the_same_verdict_and_all_numbers(run, capsys):
    directory, live = run
    for step in (1, 12, JUMP, 30):
        assert main(["explain", str(directory), "--step", str(step), "--json"]) == 0
        body = json.loads(capsys.readouterr().out)
        assert body["schema"] == "klmonitor.explain/1"
        assert body["text"] == live[step].explain()
        assert [a["kind"] for a in body["alerts"]] == [a.kind for a in live[step].alerts]
        for name, pair in live[step].pairs.items():
            found = body["pairs"][name]
            assert (found["believe"], found["verdict"]) == (
                pair.verdict.estimator,
                pair.verdict.text,
            )
            known = {k: v for k, v in pair.values.items() if not math.isnan(v)}
            assert found["values"] == pytest.approx(known, rel=1e-15)
            assert found["findings"] == list(pair.words(pair))
            assert found["tokens"]
    assert body["pairs"]["policy_ref"]["penalty"]


def test_the_receipt_and_the_tokens_are_told(run, capsys):
    directory, live = run
    assert main(["explain", str(directory), "--step", "12"]) == 0
    said = capsys.readouterr().out
    pair = live[12].pairs["policy_ref"]
    assert "receipt of the KL term" in said
    assert f"penalty/pull = {pair['penalty/pull']:.4g}" in said
    assert "d = +8.5 (q -9, p -0.5) at micro-batch 0, sequence 3, position 5, token id 101" in said


def test_by_default_it_is_where_the_gravest_alert_was_told(run, capsys):
    directory, live = run
    told = [alert for report in live.values() for alert in report.alerts]
    gravest = next(alert for alert in told if alert.severity == "critical")
    assert main(["explain", str(directory)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"step {gravest.step}: the gravest alert, critical {gravest.kind}")
    assert live[gravest.step].explain() in said


def test_without_alerts_it_is_the_highest_score_then_the_largest_k3():
    def record(**series):
        count = len(next(iter(series.values())))
        reports = [
            small_report(step, **{name: values[step] for name, values in series.items()})
            for step in range(count)
        ]
        return RunRecord(reports=reports)

    scored = record(k3__mean=[0.5, 0.1, 0.2], spike__z=[math.nan, 0.5, 2.5])
    assert chosen_step(scored, None)[0].step == 2
    assert "highest spike score" in chosen_step(scored, None)[1]
    assert chosen_step(record(k3__mean=[0.1, 0.5, 0.2]), None)[0].step == 1
    assert chosen_step(record(k1__mean=[0.1, 0.5, 0.2]), None)[0].step == 2, "the last"


def test_a_muted_alert_is_not_the_worst(run):
    directory, _ = run
    record = read_run(directory)
    quiet = replace(record, alerts=[replace(alert, muted=True) for alert in record.alerts])
    assert "no alert was told" in chosen_step(quiet, None)[1]


def test_a_step_that_is_not_there(run, tmp_path, capsys):
    directory, _ = run
    assert main(["explain", str(directory), "--step", "99"]) == 2
    assert capsys.readouterr().err == (
        "klmonitor explain: there is no step 99: the nearest is 30\n"
    )
    assert main(["explain", str(tmp_path)]) == 2
    assert "no record in" in capsys.readouterr().err
