"""What `klmonitor demo` shows, and that its files hold what it shows."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from klmonitor.cli import main
from klmonitor.record import read_run
from klmonitor.report import Alert, PairReport, Report
from klmonitor_trl.demo import tiny
from klmonitor_trl.demo.plant import StaleSampler
from klmonitor_trl.demo.run import run_demo
from klmonitor_trl.demo.scenarios import SCENARIOS
from klmonitor_trl.demo.screen import LiveScreen, PlainScreen
from tests.helpers.dumps import differences
from tests.helpers.wandb_reader import read_wandb

SERIES = "kl/policy_ref/k3/mean"


def rows(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture(scope="module")
def spike(tmp_path_factory):
    """The spike scenario as a user starts it: a process of its own, trackers and all.

    What the monitor observes is written down on its way (`dump_what_is_observed`).
    """
    out = tmp_path_factory.mktemp("demo")
    script = (
        "import sys; from tests.helpers.dumps import dump_what_is_observed; "
        f"dump_what_is_observed({str(out / 'dump.jsonl')!r}); "
        "from klmonitor.cli import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "demo", "--out", str(out)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "spike", done


def test_the_spike_is_found_and_nothing_before_it(spike):
    directory, done = spike
    alerts = rows(directory / "klmonitor" / "alerts.jsonl")
    first = min(alert["step"] for alert in alerts)
    assert 60 <= first <= 63
    assert {"spike", "surge"} & {alert["kind"] for alert in alerts if alert["step"] == first}
    assert f"What klmonitor found at step {first}" in done.stdout
    assert "believe" in done.stdout
    assert "do first" in done.stdout


def test_one_event_is_one_alert_with_continuations(spike):
    directory, _ = spike
    told = [a for a in rows(directory / "klmonitor" / "alerts.jsonl") if a["phase"] != "end"]
    opening, *later = told
    assert opening["phase"] == "open"
    assert {"spike", "surge"} <= set(opening["kinds"])
    assert later, "it goes on"
    assert {alert["phase"] for alert in later} == {"worse"}
    assert {alert["since"] for alert in told} == {opening["step"]}
    said = [kind for alert in told for kind in alert["kinds"]]
    assert len(said) == len(set(said)), "no kind is told twice"


def test_the_record_has_a_row_a_step(spike):
    directory, _ = spike
    record = rows(directory / "klmonitor" / "steps.jsonl")
    assert [row["step"] for row in record] == list(range(1, 81))


def test_the_dump_is_read_as_it_was_seen_live(spike, tmp_path):
    directory, _ = spike
    dump = str(directory.parent / "dump.jsonl")
    assert main(["read", dump, "-o", str(tmp_path / "run"), "--quiet"]) == 0
    live, read = read_run(directory / "klmonitor"), read_run(tmp_path / "run")
    without_penalty = [
        replace(r, pairs={n: _without(p, *ONLY_LIVE) for n, p in r.pairs.items()})
        for r in live.reports
    ]
    assert differences(replace(live, reports=without_penalty), read) == []
    told = [[(a.step, a.kind, a.pair, a.phase) for a in run.alerts] for run in (live, read)]
    assert told[0] == told[1]


ONLY_LIVE = ("penalty/", "audit/", "clip/", "unclipped/")
"""Metrics of what a dump does not have: the objective, the advantages, the model."""


def _without(pair, *beginnings):
    values = {k: v for k, v in pair.values.items() if not k.startswith(beginnings)}
    return replace(pair, values=values)


def test_explaining_the_spike_says_what_was_said_live(spike, capsys):
    directory, done = spike
    assert main(["explain", str(directory / "klmonitor")]) == 0
    said = capsys.readouterr().out
    head, _, text = said.partition("\n\n")
    step = int(head.partition(":")[0].removeprefix("step "))
    verdict = text.partition("\n\n")[0]
    assert f"What klmonitor found at step {step}:" in done.stdout
    assert f"step {step}, KL(policy || ref)" in verdict
    assert verdict in done.stdout


def test_tensorboard_has_the_same_steps(spike):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    directory, _ = spike
    events = EventAccumulator(str(directory / "tensorboard"), {"scalars": 0})
    events.Reload()
    points = {event.step: event.value for event in events.Scalars(f"train/{SERIES}")}
    assert points.keys() == set(range(1, 81))
    compare(points, directory, rel=1e-6)
    ours = [tag for tag in events.Tags()["scalars"] if tag.startswith("train/kl/")]
    assert 8 <= len(ours) <= 30


def test_wandb_has_the_same_steps(spike):
    directory, done = spike
    (file,) = (directory / "wandb").glob("offline-run-*/*.wandb")
    run = read_wandb(directory)
    assert run.finished
    points = {
        row["train/global_step"]: row[f"train/{SERIES}"]
        for row in run.rows
        if f"train/{SERIES}" in row
    }
    assert points.keys() == set(range(1, 81))
    compare(points, directory, rel=1e-12)
    assert any("spike" in alert.title or "surge" in alert.title for alert in run.alerts)
    assert f"wandb sync {file.parent}" in done.stdout


def compare(points, directory, rel):
    for row in rows(directory / "klmonitor" / "steps.jsonl"):
        recorded = row["pairs"]["policy_ref"]["values"]["k3/mean"]
        assert points[row["step"]] == pytest.approx(recorded, rel=rel, abs=1e-12)


@pytest.mark.parametrize(("scenario", "log_ratio"), [("k1", -40.0), ("k3", 8.0)])
def test_a_planted_token_is_named(tmp_path, capsys, scenario, log_ratio):
    assert run_demo(scenario, 40, tmp_path, trackers=()) == 0
    said = capsys.readouterr().out
    assert f"Planted at step 30: d = {log_ratio:+g}, token id" in said
    token_id = int(said.partition("token id ")[2].partition(".")[0])
    alerts = rows(tmp_path / scenario / "klmonitor" / "alerts.jsonl")
    kind = f"dominance_{scenario}"
    (alert,) = [one for one in alerts if kind in one["kinds"] and one["phase"] == "open"]
    assert alert["step"] == 30
    assert f"{scenario} is dominated by 1 token of" in alert["message"]
    token = alert["tokens"][0]
    assert token["token_id"] == token_id
    assert token["log_ratio"] == pytest.approx(log_ratio, abs=1e-4)
    row = rows(tmp_path / scenario / "klmonitor" / "steps.jsonl")[29]
    values = row["pairs"]["policy_ref"]["values"]
    with_it, without = values[f"{scenario}/mean"], values[f"{scenario}/mean_without_top"]
    n = values["tokens"]
    d = token["log_ratio"]
    own = -d if scenario == "k1" else math.expm1(d) - d
    assert (n * with_it - own) / (n - 1) == pytest.approx(without, abs=1e-9)
    assert f"{scenario} is dominated by 1 token" in said


def shown(tmp_path, scenario, steps):
    """The reports and the alerts of a short run of a scenario, which found what it must."""
    assert run_demo(scenario, steps, tmp_path, trackers=()) == 0
    run = read_run(tmp_path / scenario / "klmonitor")
    assert len(run.reports) == steps
    opened = [alert for alert in run.alerts if alert.phase == "open"]
    return {report.step: report for report in run.reports}, opened


def gap_z(report):
    pair = report.pairs["policy_ref"]
    return pair["gap_z"]


def test_a_healthy_run_raises_no_alert(tmp_path, capsys):
    reports, alerts = shown(tmp_path, "healthy", 60)
    assert alerts == []
    assert all("gap" not in report.explain() for report in reports.values())
    assert "60 steps in" in capsys.readouterr().out
    k3 = [report.pairs["policy_ref"].k3.mean for report in reports.values()]
    assert 0 < max(k3) < 0.1


def test_a_stale_sampler_fails_the_gap_test(tmp_path, capsys):
    reports, alerts = shown(tmp_path, "sampler", 48)
    event = SCENARIOS["sampler"].event(48)
    assert {alert.kind for alert in alerts} == {"gap", "k1_negative", "cause", "limit"}
    alerts = [alert for alert in alerts if alert.kind != "limit"]  # of .5 nats, before the event
    assert "not drawn from policy" in reports[48].pairs["policy_ref"].cause.text
    assert event <= alerts[0].step <= event + 5
    before = [gap_z(report) for step, report in reports.items() if 1 < step < event]
    after = [gap_z(report) for step, report in reports.items() if step >= event + 5]
    assert max(map(abs, before)) < 5
    assert min(after) > 5
    k1 = {step: report.pairs["policy_ref"].k1.mean for step, report in reports.items()}
    assert k1[48] < 0 < k1[event - 1]
    assert "not drawn from policy as it is scored" in reports[48].explain()
    assert "believe neither" in reports[48].explain()
    assert f"weights of the start: {48 - event + 1} batches" in capsys.readouterr().out


def test_a_policy_that_collapses_runs_away_and_is_told(tmp_path):
    reports, alerts = shown(tmp_path, "collapse", 75)
    event = SCENARIOS["collapse"].event(75)
    kinds = {kind for alert in alerts if alert.severity == "critical" for kind in alert.kinds}
    assert {"surge", "spike"} <= kinds
    assert event <= alerts[0].step <= event + 10
    k1 = {step: report.pairs["policy_ref"].k1.mean for step, report in reports.items()}
    assert abs(k1[event]) < 0.1
    # one token of 97 is left, which the reference draws with 1/97 or so
    assert k1[75] == pytest.approx(math.log(97), abs=1)
    told = [step for step, report in reports.items() if "policy has collapsed" in report.explain()]
    assert told
    assert min(told) > event


def test_stale_weights_leave_the_training_weights_alone(tmp_path):
    model = tiny.save_tiny_model(tmp_path / "model")
    trainer = tiny.make_trainer(model, tmp_path, steps=1)
    sampler = StaleSampler(trainer, 1)
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight.add_(1.0)
    changed = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    ids = torch.tensor([[5, 6, 7]])
    sampler._generate = lambda *_, **__: float(next(trainer.model.parameters()).detach().sum())
    seen = trainer.model.generate(ids)
    start = next(iter(sampler._start.values()))
    assert seen == pytest.approx(float(start.sum()))
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(weight, changed[name])


def test_a_scenario_that_shows_nothing_fails(tmp_path, capsys, monkeypatch):
    from klmonitor_trl.demo import run

    undisturbed = replace(SCENARIOS["k1"], disturb=None)
    monkeypatch.setattr(run, "SCENARIOS", {"k1": undisturbed})
    assert run_demo("k1", 40, tmp_path, trackers=()) == 1
    said = capsys.readouterr().out
    assert "not what was expected: dominance_k1 from step 30 on" in said


def test_a_second_run_gets_a_directory_of_its_own(tmp_path):
    from klmonitor_trl.demo import run

    assert run._fresh(tmp_path, "spike") == tmp_path / "spike"
    assert run._fresh(tmp_path, "spike") == tmp_path / "spike-2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--steps", "10"], "steps = 10: the rules need 40 at least")],
)
def test_what_cannot_work_is_said_in_one_line(tmp_path, arguments, message, capsys):
    assert main(["demo", "--out", str(tmp_path), *arguments]) == 2
    assert f"klmonitor demo: {message}" in capsys.readouterr().err


def a_report(step, alert=None):
    values = {f"{k}/{m}": 0.25 for k in ("k1", "k2", "k3") for m in ("mean", "se", "var")}
    pair = PairReport("policy_ref", values | {"outliers/k1": 1.0, "outliers/k3": 2.0})
    alerts = (Alert(step, alert, "warn", "policy_ref", "it rose"),) if alert else ()
    return Report(step=step, pairs={"policy_ref": pair}, alerts=alerts)


def test_plain_lines_show_every_tenth_step_and_every_alert(capsys):
    screen = PlainScreen()
    for step in range(1, 31):
        screen.show(a_report(step, "spike" if step == 17 else None))
    screen.close()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["step", "1", "10", "17", "20", "30"]
    assert lines[3].endswith("<- spike")
    assert "0.2500 ± 0.2500" in lines[3]


def test_a_live_table_shows_the_last_steps(capsys):
    pytest.importorskip("rich")
    screen = LiveScreen(40)
    for step in range(1, 41):
        screen.show(a_report(step, "spike" if step == 39 else None))
    screen.close()
    said = capsys.readouterr().out
    assert "40/40" in said
    assert "1 alerts" in said
    assert "spike" in said
