"""What `klmonitor demo` shows, and that its files hold what it shows."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from wandb_reader import read_wandb

from klmonitor.cli import main
from klmonitor.demo.run import run_demo
from klmonitor.demo.screen import LiveScreen, PlainScreen
from klmonitor.report import Alert, PairReport, Report

SERIES = "kl/policy_ref/k3/mean"


def rows(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture(scope="module")
def spike(tmp_path_factory):
    """The spike scenario as a user starts it: a process of its own, trackers and all."""
    out = tmp_path_factory.mktemp("demo")
    script = "import sys; from klmonitor.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", script, "demo", "--out", str(out)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
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


def test_the_record_has_a_row_a_step(spike):
    directory, _ = spike
    record = rows(directory / "klmonitor" / "steps.jsonl")
    assert [row["step"] for row in record] == list(range(1, 81))


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
    (alert,) = [one for one in alerts if one["kind"] == kind and one["phase"] == "open"]
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
    assert said.count(f"{scenario} is dominated by 1 token") == 1


def test_a_second_run_gets_a_directory_of_its_own(tmp_path):
    from klmonitor.demo import run

    assert run._fresh(tmp_path, "spike") == tmp_path / "spike"
    assert run._fresh(tmp_path, "spike") == tmp_path / "spike-2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--steps", "10"], "steps = 10: the rules need 40 at least")],
)
def test_what_cannot_work_is_said_in_one_line(tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(["demo", "--out", str(tmp_path), *arguments])


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
