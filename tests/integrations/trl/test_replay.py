"""The demo's recorded run, replayed: the alerts are those that were raised live."""

import json

import pytest

from klmonitor.cli import main
from klmonitor.demo.run import SCENARIOS, run_demo


@pytest.mark.parametrize("scenario", sorted(SCENARIOS))
def test_backtest_raises_the_alerts_of_the_live_run(tmp_path, capsys, scenario):
    assert run_demo(scenario, 40, tmp_path, trackers=()) == 0
    record = tmp_path / scenario / "klmonitor"
    rows = [json.loads(line) for line in (record / "alerts.jsonl").read_text().splitlines()]
    live = [row for row in rows if row["phase"] != "end"]
    assert {row["kind"] for row in live} & set(SCENARIOS[scenario])
    capsys.readouterr()
    assert main(["backtest", str(record), "--json"]) == 0
    [run] = json.loads(capsys.readouterr().out)["runs"]
    assert [{k: v for k, v in row.items() if k != "false_alarm"} for row in run["alerts"]] == live
    critical = any(row["severity"] == "critical" for row in live)
    assert main(["backtest", str(record), "--fail-on", "critical"]) == int(critical)
