"""What Prometheus is served, and that the shipped rules and dashboard are about just that."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import pytest

from klmonitor.report import Report
from klmonitor.sinks import PrometheusSink
from klmonitor.sinks.table import SinkOptions, make_sinks
from tests.helpers.reports import make_alert, make_report, small_report

parser = pytest.importorskip("prometheus_client.parser")

DATA = Path(__file__).parents[2] / "docs" / "prometheus"


@pytest.fixture
def make_sink():
    made = []

    def make(**options):
        made.append(PrometheusSink(port=0, **options))
        return made[-1]

    yield make
    for sink in made:
        sink.close()


def scrape(sink):
    """(name, labels) -> value, as Prometheus would read them."""
    opener = build_opener(ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{sink.port}/metrics", timeout=60) as page:
        text = page.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def labelled(name, **labels):
    return name, frozenset(labels.items())


def test_every_counter_is_there_with_zero_before_the_first_step(make_sink):
    samples = scrape(make_sink(kinds=["my_rule"]))
    counters = {k: v for k, v in samples.items() if k[0].endswith("_total")}
    assert set(counters.values()) == {0.0}
    for kind in ("spike", "nonfinite", "my_rule"):
        for severity in ("warn", "critical"):
            assert labelled("klmonitor_alerts_total", kind=kind, severity=severity) in counters
    assert labelled("klmonitor_nonfinite_tokens_total", pair="policy_ref") in counters


def test_gauges_hold_the_last_step_and_counters_every_step(make_sink):
    sink = make_sink()
    for step in (1, 2, 3):
        alerts = (make_alert(step), make_alert(step)) if step == 2 else ()
        one = small_report(step, k3__mean=0.5 * step, tokens=100, outliers__k1=step, nonfinite=1)
        sink(Report(step, one.pairs, alerts=alerts, run_values={"klmonitor/errors": 4.0}))
    samples = scrape(sink)
    assert samples[labelled("klmonitor_kl_k3_mean", pair="policy_ref")] == 1.5
    assert samples[labelled("klmonitor_step")] == 3
    assert samples[labelled("klmonitor_errors")] == 4
    assert samples[labelled("klmonitor_steps_total")] == 3
    assert samples[labelled("klmonitor_alerts_total", kind="spike", severity="warn")] == 2
    assert samples[labelled("klmonitor_seen_tokens_total", pair="policy_ref")] == 300
    assert samples[labelled("klmonitor_nonfinite_tokens_total", pair="policy_ref")] == 3
    outliers = labelled("klmonitor_outlier_tokens_total", pair="policy_ref", estimator="k1")
    assert samples[outliers] == 1 + 2 + 3


def test_an_evaluation_is_apart_and_counts_nothing(make_sink):
    sink = make_sink()
    sink(small_report(5, phase="eval", k3__mean=0.25, tokens=10))
    samples = scrape(sink)
    assert samples[labelled("klmonitor_eval_kl_k3_mean", pair="policy_ref")] == 0.25
    assert samples[labelled("klmonitor_steps_total")] == 0
    assert samples[labelled("klmonitor_seen_tokens_total", pair="policy_ref")] == 0


def test_a_full_report_of_two_pairs_is_served_whole(make_sink):
    sink = make_sink(metrics="full")
    one = make_report(1, "policy_ref", "rollout_old")
    sink(one)
    samples = scrape(sink)
    for name, pair in one.pairs.items():
        served = {key for key in samples if ("pair", name) in key[1] and "_kl_" in key[0]}
        assert len(served) == len(pair.values)


def test_what_cannot_start_says_so(make_sink):
    first = make_sink()
    with pytest.raises(OSError, match="give PrometheusSink another port"):
        PrometheusSink(port=first.port)
    with pytest.raises(ValueError, match='choose "core", "full"'):
        PrometheusSink(port=0, metrics="everything")
    with pytest.raises(ValueError, match="name tensorboard, wandb, prometheus"):
        make_sinks(["graphite"], SinkOptions())


def names_in(text):
    """Names of series in a file: a klmonitor_ word that is not a label's or file's."""
    return set(re.findall(r"\bklmonitor_[a-z0-9_]+", text))


@pytest.mark.parametrize("file", ["alerts.yml", "grafana.json"])
def test_shipped_files_are_about_series_that_are_served(make_sink, file):
    sink = make_sink()
    pairs = make_report(1).pairs
    sink(Report(1, pairs, run_values={"klmonitor/active": 1.0, "klmonitor/errors": 0.0}))
    served = {name for name, _ in scrape(sink)}
    wanted = names_in((DATA / file).read_text())
    assert len(wanted) >= 4
    assert wanted <= served


def test_the_dashboard_is_one(make_sink):
    board = json.loads((DATA / "grafana.json").read_text())
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 8
    variables = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]+)\}?", (DATA / "grafana.json").read_text()))
    assert used - {"__rate_interval"} <= variables
    for first in panels:
        for second in panels:
            a, b = first["gridPos"], second["gridPos"]
            apart = (
                a["x"] + a["w"] <= b["x"]
                or b["x"] + b["w"] <= a["x"]
                or a["y"] + a["h"] <= b["y"]
                or b["y"] + b["h"] <= a["y"]
            )
            assert apart or first is second


# --- promtool, from Debian's package `prometheus` ----------------------------------------------
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed (Debian: apt install prometheus)"
)

SPIKE = """
rule_files: [{rules}]
evaluation_interval: 15s
tests:
  - interval: 15s
    input_series:
      - series: 'klmonitor_alerts_total{{kind="spike", severity="critical", instance="a", job="j"}}'
        values: "0x19 {after}x40"
    alert_rule_test:
      - eval_time: 4m
        alertname: KLCritical
      - eval_time: 6m
        alertname: KLCritical
        exp_alerts: {expected}
      - eval_time: 14m
        alertname: KLCritical
"""
FIRED = """
          - exp_labels: {kind: spike, instance: a, job: j, severity: critical}
            exp_annotations:
              summary: "spike on a: klmonitor raised a critical alert"
              description: "The run's alerts.jsonl has the numbers and what to do first."
"""


@needs_promtool
def test_promtool_accepts_the_rules():
    done = subprocess.run(
        [PROMTOOL, "check", "rules", "--lint-fatal", str(DATA / "alerts.yml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS: 5 rules found" in done.stdout


@needs_promtool
@pytest.mark.parametrize(("after", "expected"), [(1, FIRED), (0, "[]")])
def test_one_step_that_counted_fires_for_five_minutes_and_none_does_not(tmp_path, after, expected):
    case = tmp_path / "case.yml"
    case.write_text(SPIKE.format(rules=DATA / "alerts.yml", after=after, expected=expected))
    done = subprocess.run(
        [PROMTOOL, "test", "rules", str(case)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_accepts_what_is_served(make_sink):
    sink = make_sink(metrics="full")
    sink(make_report(1, "policy_ref", "rollout_old", alerts=(make_alert(1),)))
    opener = build_opener(ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{sink.port}/metrics", timeout=60) as page:
        text = page.read()
    done = subprocess.run(
        [PROMTOOL, "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
