"""The demo's recorded run, replayed: the alerts are those that were raised live."""

import json

import pytest

from klmonitor.cli import main
from klmonitor_trl.demo.run import SCENARIOS, run_demo

STEPS = {"collapse": 80}
"""Steps of scenarios that take longer than 40."""


@pytest.mark.parametrize("scenario", sorted(SCENARIOS))
def test_backtest_raises_the_alerts_of_the_live_run(tmp_path, capsys, scenario):
    assert run_demo(scenario, STEPS.get(scenario, 40), tmp_path, trackers=()) == 0
    record = tmp_path / scenario / "klmonitor"
    alerts, wanted = record / "alerts.jsonl", set(SCENARIOS[scenario].kinds)
    lines = alerts.read_text().splitlines() if alerts.exists() else []
    rows = [{k: v for k, v in json.loads(line).items() if k != "seq"} for line in lines]
    live = [row for row in rows if row["phase"] != "end"]
    assert bool({kind for row in live for kind in row["kinds"]} & wanted) == bool(wanted)
    capsys.readouterr()
    assert main(["backtest", str(record), "--json"]) == 0
    [run] = json.loads(capsys.readouterr().out)["runs"]
    assert [{k: v for k, v in row.items() if k != "false_alarm"} for row in run["alerts"]] == live
    critical = any(row["severity"] == "critical" for row in live)
    assert main(["backtest", str(record), "--fail-on", "critical"]) == int(critical)
