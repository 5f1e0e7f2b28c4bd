"""The public face: observe, step, the failure contract, merged rows, state."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from klmonitor import Monitor
from klmonitor.cli import main
from klmonitor.record import read_run
from klmonitor.report import Later
from tests.helpers.steps import choose_pass


def batch(seed=0, rows=8, columns=20, scale=0.1):
    generator = torch.Generator().manual_seed(seed)
    q = -2 * torch.rand(rows, columns, generator=generator)
    p = q + scale * torch.randn(rows, columns, generator=generator)
    mask = torch.rand(rows, columns, generator=generator) < 0.9
    return {"policy": q, "ref": p, "mask": mask}


def d_of(*batches):
    return np.concatenate(
        [(b["ref"].double() - b["policy"].double())[b["mask"]].numpy() for b in batches]
    )


def test_a_step_sums_its_micro_batches():
    monitor = Monitor()
    parts = [batch(seed) for seed in range(3)]
    for part in parts:
        monitor.observe(**part)
    report = monitor.step(17)
    d = d_of(*parts)
    pair = report.pairs["policy_ref"]
    assert report.step == 17
    assert pair.k1.mean == pytest.approx(-d.mean(), rel=1e-12)
    assert pair.k3.mean == pytest.approx((np.expm1(d) - d).mean(), rel=1e-9)
    assert pair.k2.var == pytest.approx((d * d / 2).var(ddof=1), rel=1e-9)
    assert pair.tokens == len(d)
    assert report.scalars()["kl/policy_ref/k1/mean"] == pair.k1.mean
    assert report.scalars()["klmonitor/errors"] == 0
    assert {token.micro_batch for token in report.extremes} <= {0, 1, 2}
    assert monitor.step(18).pairs == {}, "the next step starts from nothing"


def test_the_running_numbers_pool_tokens_and_keep_drift():
    monitor = Monitor(half_life=10.0)
    parts = [batch(seed, rows=4 + seed % 3, scale=0.1 * (1 + seed)) for seed in range(30)]
    for i, part in enumerate(parts):
        monitor.observe(**part)
        report = monitor.step(i)
    weights = np.concatenate(
        [np.full(len(d_of(p)), 2 ** (-(29 - i) / 10)) for i, p in enumerate(parts)]
    )
    for name, values in (("k1", -d_of(*parts)), ("k2", d_of(*parts) ** 2 / 2)):
        near = np.abs(d_of(*parts)) <= 20
        mean = np.average(values[near], weights=weights[near])
        variance = np.average((values[near] - mean) ** 2, weights=weights[near])
        estimate = report.pairs["policy_ref"].estimate(name)
        assert estimate.running_mean == pytest.approx(mean, rel=1e-9)
        assert estimate.running_var == pytest.approx(variance, rel=1e-9)


def test_one_huge_token_stays_out_of_the_running_variance():
    monitor = Monitor()
    part = batch()
    monitor.observe(**part)
    before = monitor.step(0).pairs["policy_ref"]
    part = batch(1)
    part["ref"][0, 0] = part["policy"][0, 0] - 40
    part["mask"][0, 0] = True
    monitor.observe(**part)
    after = monitor.step(1).pairs["policy_ref"]
    assert after.k1.var > 100 * before.k1.var
    assert after.k1.running_var < 2 * before.k1.var
    assert after["log_ratio/excluded"] == 1
    assert after["log_ratio/min"] == pytest.approx(-40, abs=1e-5)


def test_eval_and_train_are_kept_apart():
    monitor = Monitor()
    train, evaluation = batch(0), batch(1)
    monitor.observe(**train)
    monitor.observe(**evaluation, phase="eval")
    eval_report = monitor.step(1, phase="eval")
    report = monitor.step(1)
    assert eval_report.phase == "eval"
    assert eval_report.pairs["policy_ref"].k1.mean == pytest.approx(-d_of(evaluation).mean())
    assert report.pairs["policy_ref"].k1.mean == pytest.approx(-d_of(train).mean())


def test_a_row_of_several_steps_is_their_union():
    monitor = Monitor(merge_rows=True)
    assert monitor.take_logged() is None
    parts = [batch(seed, rows=2 + seed) for seed in range(20)]
    for i, part in enumerate(parts):
        monitor.observe(**part)
        monitor.step(i)
    row = monitor.take_logged()
    d = d_of(*parts)
    assert (row.first_step, row.step) == (0, 19)
    assert row.pairs["policy_ref"].k3.mean == pytest.approx((np.expm1(d) - d).mean(), rel=1e-9)
    assert row.pairs["policy_ref"].k1.var == pytest.approx(d.var(ddof=1), rel=1e-9)
    assert monitor.take_logged() is None


def test_without_waiting_reports_lag_by_one_step_and_close_delivers_the_last(tmp_path):
    waiting, lagging = Monitor(), Monitor(tmp_path / "run")
    expected = []
    for i in range(4):
        for monitor in (waiting, lagging):
            monitor.observe(**batch(i))
        expected.append(waiting.step(i))
        late = lagging.step(i, wait=False)
        assert late.step == (i - 1 if i else None)
        if i:
            found, due = (r.pairs["policy_ref"] for r in (late, expected[i - 1]))
            assert found.values == pytest.approx(due.values, rel=0, abs=0, nan_ok=True)
            assert (found.extremes, found.histogram) == (due.extremes, due.histogram)
    lagging.close()
    assert [report.step for report in read_run(tmp_path / "run").reports] == [0, 1, 2, 3]


def test_state_carries_running_numbers_and_rules_through_json(monkeypatch):
    choose_pass(monkeypatch, "plain")  # the compiled one may be ready half way, and rounds its way
    whole, first = Monitor(), Monitor()
    for i in range(12):
        for monitor in (whole, first) if i < 6 else (whole,):
            monitor.observe(**batch(i))
            monitor.step(i)
    second = Monitor()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for i in range(6, 12):
        second.observe(**batch(i))
        second.step(i)
    assert second.state_dict() == whole.state_dict()
    with pytest.raises(ValueError, match="version 7"):
        second.load_state_dict({"version": 7})


def test_what_is_muted_is_recorded_marked_and_told_to_nobody(tmp_path):
    """The file says so while the run goes on: looked at with each row that is written."""
    told = []
    rules = {"limit": {"policy_ref": 0.1, "old_policy": 0.1}}
    monitor = Monitor(tmp_path, rules=rules, sinks=[told.append], merge_rows=True)

    def step(number, scale):
        one = batch(number, scale=scale)
        low = {name: one[name] - 12 for name in ("policy", "ref")}  # log-probs, also far away
        monitor.observe(**{**one, **low}, old=low["ref"])
        report = monitor.step(number)
        monitor.flush()
        return {alert.pair: alert.muted for alert in report.alerts if alert.kind == "limit"}

    assert step(0, 0.1) == {}
    assert main(["mute", str(tmp_path), "limit", "--pair", "policy_ref"]) == 0
    assert step(1, 0.1) == {}, "its row is written, and the file looked at"
    assert step(2, 2.0) == {"policy_ref": True, "old_policy": False}
    limits = [alert for alert in told[2].alerts if alert.kind == "limit"]
    assert [alert.pair for alert in limits] == ["old_policy"]
    assert told[2].run_values["kl/alerts"] == len(told[2].alerts)
    row = monitor.take_logged()
    assert not any(alert.muted for alert in row.alerts)
    monitor.close()
    recorded = [alert for alert in read_run(tmp_path).alerts if alert.kind == "limit"]
    assert {alert.pair: alert.muted for alert in recorded} == {
        "policy_ref": True,
        "old_policy": False,
    }


def test_what_the_rules_mute_needs_no_record():
    rules = {"limit": {"policy_ref": 1e-4}, "mute": [{"kind": "limit", "until_step": 3}]}
    monitor = Monitor(rules=rules)
    monitor.observe(**batch(0))
    [alert] = [alert for alert in monitor.step(0).alerts if alert.kind == "limit"]
    assert alert.muted


def test_notices_of_people_and_of_the_run_are_on_its_time_line(tmp_path):
    first = Monitor(tmp_path)
    first.note("before the first step")
    for step in (1, 2):
        first.observe(**batch(step))
        first.step(step)
    first.note("new data from here")
    state = json.loads(json.dumps(first.state_dict()))
    first.close()
    second = Monitor(tmp_path)
    second.load_state_dict(state)
    second.note("more memory")
    second.observe(**batch(3))
    second.step(3)
    second.close()
    assert [(n.step, n.kind, n.text) for n in read_run(tmp_path).notices] == [
        (0, "note", "before the first step"),
        (2, "note", "new data from here"),
        (2, "note", "more memory"),
        (3, "resume", "resumed from the state saved after step 2"),
    ]
    Monitor().note("nowhere to put it")


def test_a_note_that_cannot_be_written_harms_nobody(tmp_path):
    (tmp_path / "notes.jsonl").mkdir()
    monitor = Monitor(tmp_path)
    monitor.note("lost")
    monitor.observe(**batch())
    monitor.flush()
    assert monitor.step(0).health.errors == 1
    monitor.close()


BAD_FIRST = [
    ({"policy": torch.zeros(2, 3), "ref": torch.zeros(2, 4)}, ValueError, "slice both"),
    ({"policy": torch.zeros(2, 3).long(), "ref": torch.zeros(2, 3)}, TypeError, "log-probs are"),
    ({"policy": torch.zeros(2, 3), "referenz": torch.zeros(2, 3)}, TypeError, "unknown policy"),
    ({"rollout": torch.zeros(2, 3), "ref": torch.zeros(2, 3)}, ValueError, "pass policy and ref"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_FIRST)
def test_the_first_observe_is_setup_and_raises(arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        Monitor().observe(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_FIRST)
def test_later_ones_are_counted_and_reported_once(arguments, error, message, caplog):
    monitor = Monitor()
    monitor.observe(**batch())
    with caplog.at_level(logging.WARNING, "klmonitor"):
        monitor.observe(**arguments)
        monitor.observe(**arguments)
    assert monitor.errors == 2
    assert len(caplog.records) == 1
    assert "observe failed" in caplog.text
    monitor.observe(**batch(1))
    report = monitor.step(0)
    assert report.run_values["klmonitor/errors"] == 2
    assert report.pairs["policy_ref"].tokens == len(d_of(batch(), batch(1)))
    strict = Monitor(strict=True)
    strict.observe(**batch())
    with pytest.raises(error, match=message):
        strict.observe(**arguments)


def test_a_sequence_that_is_made_later_keeps_nobody_from_another_one():
    """On the record's thread one may take long; the thread that trains looks at others."""
    started, go_on = threading.Event(), threading.Event()

    def slow():
        started.set()
        assert go_on.wait(60)
        return [1, 2]

    stalled, other = Later(slow), Later(lambda: [3])
    thread = threading.Thread(target=lambda: list(stalled), daemon=True)
    thread.start()
    assert started.wait(60)
    seen = []
    quick = threading.Thread(target=lambda: seen.extend(other), daemon=True)
    quick.start()
    quick.join(60)
    assert seen == [3]
    go_on.set()
    thread.join(60)
    assert stalled == [1, 2]
    assert repr(stalled) == "(1, 2)"


def test_what_makes_a_sequence_later_may_not_end_it_with_an_error():
    broken = Later(lambda: [][0])
    with pytest.raises(IndexError):
        list(broken)


def test_tokens_without_text_are_recorded_where_text_fails(tmp_path):
    def refuse(tokens, phase):
        raise KeyError("no such token")

    monitor = Monitor(tmp_path, annotate=refuse)
    for step in range(2):
        monitor.observe(**batch(step))
        monitor.step(step)
    monitor.close()
    assert monitor.errors == 2
    rows = [json.loads(line) for line in (tmp_path / "tokens.jsonl").read_text().splitlines()]
    assert [len(row["tokens"]) for row in rows] == [8, 8]
    strict = Monitor(tmp_path, annotate=refuse, strict=True)
    strict.observe(**batch())
    with pytest.raises(KeyError):
        strict.step(2)
    strict.close()


def test_observe_gives_up_after_repeated_failures_and_says_so():
    monitor = Monitor()
    monitor.observe(**batch())
    for _ in range(10):
        monitor.observe(policy=torch.zeros(2, 3), ref=torch.zeros(3, 2))
    assert monitor.errors == 5
    assert not monitor.active


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": ["a", "a"]}, "distinct names"),
        ({"groups": ["other"]}, "'other' is taken"),
        ({"half_life": 0}, "half_life is 0"),
        ({"pairs": ["ref_policy"]}, "unknown pair 'ref_policy'.*policy_ref"),
        ({"log_tokens": "all"}, "log_tokens is 'all'"),
        ({"sinks": ["tensorbord"]}, "unknown sink 'tensorbord'"),
        ({"metrics": "everything", "sinks": ["tensorboard"]}, "metrics"),
        ({"rules": "loud"}, "loud"),
    ],
)
def test_bad_settings_are_one_line_errors(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        Monitor(**options)
    assert "\n" not in str(caught.value)


def test_a_sink_that_fails_costs_nobody_else(caplog):
    seen = []

    def broken(report):
        raise RuntimeError("no disk")

    monitor = Monitor(sinks=[broken, seen.append])
    with caplog.at_level(logging.WARNING, "klmonitor"):
        for i in range(3):
            monitor.observe(**batch(i))
            monitor.step(i)
    assert [report.step for report in seen] == [0, 1, 2]
    assert caplog.text.count("no disk") == 1
    assert seen[-1].run_values["klmonitor/errors"] == 2


def test_groups_are_reported_apart():
    monitor = Monitor(groups=["math", "code"])
    monitor.observe(**batch(0), group="math")
    monitor.observe(**batch(1), group="poetry")
    monitor.observe(**batch(2), group=["code"] * 4 + ["math"] * 4)
    pair = monitor.step(0).pairs["policy_ref"]
    halves = {k: v[4:] for k, v in batch(2).items()}
    math_d = d_of(batch(0), halves)
    assert pair["group/math/k1/mean"] == pytest.approx(-math_d.mean(), rel=1e-12)
    assert pair["group/other/k1/mean"] == pytest.approx(-d_of(batch(1)).mean(), rel=1e-12)
    assert pair.k1.mean == pytest.approx(-d_of(batch(0), batch(1), batch(2)).mean(), rel=1e-12)


def test_disabled_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("KLMONITOR_DISABLE", "1")
    monitor = Monitor(tmp_path / "run")
    monitor.observe(policy="nonsense", ref=3)
    report = monitor.step(0)
    assert (report.step, report.pairs, report.health.active) == (0, {}, False)
    monitor.close()
    assert not (tmp_path / "run").exists()


def test_the_record_holds_every_step_with_its_numbers(tmp_path):
    monitor = Monitor(tmp_path / "run")
    reports = []
    for i in range(3):
        monitor.observe(**batch(i), token_ids=torch.arange(160).view(8, 20))
        reports.append(monitor.step(i))
    monitor.close()
    record = read_run(tmp_path / "run")
    for written, report in zip(record.reports, reports, strict=True):
        for name, value in report.pairs["policy_ref"].values.items():
            np.testing.assert_equal(written.pairs["policy_ref"][name], value)
    token = record.tokens[2][0]
    assert token.token_id == token.sequence * 20 + token.position


def test_positive_nan_and_infinite_values_are_counted_not_averaged():
    part = batch()
    part["mask"][:] = True
    part["ref"][0, :4] = torch.tensor([math.nan, math.inf, -math.inf, 3.0])
    monitor = Monitor()
    monitor.observe(**part)
    report = monitor.step(0)
    pair = report.pairs["policy_ref"]
    assert pair["nonfinite"] == 3
    positive = (part["ref"] > 1e-3).sum() + (part["policy"] > 1e-3).sum()
    assert pair["positive_logp"] == positive.item()
    assert math.isfinite(pair.k3.mean)
    assert any(alert.kind == "nonfinite" for alert in report.alerts)


def test_importing_klmonitor_imports_nothing_heavy():
    code = (
        "import sys, klmonitor\n"
        "heavy = {'torch', 'wandb', 'tensorboard', 'trl', 'transformers', 'rich', 'apprise'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "from klmonitor import Monitor, k1\n"
        "assert not (heavy - {'torch'}) & set(sys.modules), sys.modules.keys() & heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_first_wrong_and_later_right_call_still_counts_as_setup():
    monitor = Monitor()
    with pytest.raises(ValueError, match="slice both"):
        monitor.observe(policy=torch.zeros(2, 3), ref=torch.zeros(2, 4))
    monitor.observe(**batch())
    assert monitor.step(0).pairs["policy_ref"].tokens > 0
    assert monitor.errors == 0


def test_what_is_observed_in_inference_mode_adds_up_with_what_is_observed_outside():
    monitor = Monitor(strict=True)
    lp = -torch.rand(40, 1024)
    with torch.inference_mode():
        monitor.observe(policy=lp, ref=lp - 0.1)
    monitor.observe(policy=lp, ref=lp - 0.1)
    with torch.inference_mode():
        monitor.observe(policy=lp + 0, ref=lp - 0.1)
    assert monitor.step(1).pairs["policy_ref"].tokens == 3 * lp.numel()
    with torch.inference_mode():
        monitor.observe(policy=lp, ref=lp - 0.1)


@pytest.mark.parametrize("kind", [np.array, list, torch.tensor])
def test_groups_by_index(kind):
    monitor = Monitor(groups=["a", "b"], strict=True)
    lp = -torch.rand(4, 8)
    shift = torch.tensor([1.0, 2.0, 3.0, 5.0]).view(4, 1)
    monitor.observe(policy=lp, ref=lp - shift, group=kind([1, 0, 7, -1]))
    values = monitor.step(1).pairs["policy_ref"].values
    found = {name: values[f"group/{name}/k1/mean"] for name in ("a", "b", "other")}
    assert found == pytest.approx({"a": 2.0, "b": 1.0, "other": 4.0}, rel=1e-6)


def test_an_evaluation_has_no_running_numbers():
    monitor = Monitor(strict=True)
    lp = -torch.rand(3, 8)
    monitor.observe(policy=lp, ref=lp - 1)
    monitor.step(1)
    monitor.observe(policy=lp, ref=lp - 1, phase="eval")
    assert math.isnan(monitor.step(1, phase="eval").pairs["policy_ref"].k1.running_var)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_step_closed_in_inference_mode_leaves_a_monitor_that_works(compiled, monkeypatch):
    choose_pass(monkeypatch, "compiled" if compiled else "plain")
    expected, monitor = Monitor(strict=True), Monitor(strict=True)
    for i in range(4):
        with torch.inference_mode():
            monitor.step(10 * i)  # nothing was observed since the last
        for one in (expected, monitor):
            one.observe(**batch(i))
        with torch.inference_mode():
            found = monitor.step(10 * i + 1)
        due = expected.step(10 * i + 1)
        mine, theirs = (r.pairs["policy_ref"]["k3/mean"] for r in (found, due))
        assert mine == theirs > 0
