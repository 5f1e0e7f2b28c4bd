"""What trackio, MLflow and SwanLab are sent: by a tracker that keeps it, and by the real ones.

The real libraries are no part of the test environment: `make test-trackers` runs these tests in an
environment a library, made from the wheel.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sqlite3
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from klmonitor.record import RecordWriter
from klmonitor.report import Report
from klmonitor.sinks import select
from klmonitor.sinks.queued import MEDIA_EVERY
from klmonitor.sinks.table import TABLE
from klmonitor.sinks.tokentable import COLUMNS
from klmonitor.sinks.tracker import TrackerSink
from tests.helpers.reports import make_alert, make_report
from tests.helpers.wandb_reader import records

LONG = 60.0


class Kept:
    """A tracker that keeps what it is sent, and the threads that sent it."""

    name = "kept"

    def __init__(self):
        self.rows, self.alerts, self.drawn, self.pages = {}, [], {}, []
        self.threads, self.finished = set(), 0

    def log(self, row, step):
        self.threads.add(threading.get_ident())
        self.rows[step] = dict(row)

    def alert(self, alert):
        self.alerts.append(alert)

    def media(self, step, heat, columns, rows):
        self.drawn[step] = (heat, columns, rows)

    def page(self, html, step):
        self.pages.append((html, step))

    def finish(self):
        self.finished += 1


def sent(*reports: Report, **options) -> Kept:
    sink = TrackerSink(Kept(), **options)
    for report in reports:
        sink(report)
    sink.close(LONG)
    assert (sink.errors, sink.dropped) == (0, 0)
    return sink.tracker


def test_numbers_go_under_their_step_on_one_other_thread():
    reports = [make_report(step) for step in (3, 4, 9)]
    kept = sent(*reports)
    assert kept.rows == {report.step: select("core", report) for report in reports}
    assert len(kept.threads) == 1
    assert threading.get_ident() not in kept.threads


def test_no_metrics_leaves_alerts_and_media():
    kept = sent(make_report(1, alerts=(make_alert(1),)), metrics=())
    assert (kept.rows, len(kept.alerts), list(kept.drawn)) == ({}, 1, [1])


def test_media_come_first_now_and_then_and_at_alerts():
    steps = range(2 * MEDIA_EVERY + 5)
    kept = sent(*(make_report(n, alerts=(make_alert(n),) if n == 7 else ()) for n in steps))
    assert list(kept.drawn) == [0, 7, 7 + MEDIA_EVERY]


def test_histograms_hold_every_token():
    report = make_report(1)
    heat, _, _ = sent(report).drawn[1]
    [(tokens, bounds)] = heat.values()
    assert list(heat) == ["kl/policy_ref/log_ratio"]
    assert len(bounds) == len(tokens) + 1
    total = sum(count for _, count in report.pairs["policy_ref"].histogram)
    assert sum(tokens) == pytest.approx(total, rel=1e-12)


def test_text_of_tokens_goes_only_where_it_is_given():
    report = make_report(1, alerts=(make_alert(1),))
    _, columns, rows = sent(report).drawn[1]
    assert "text" not in columns
    assert all(len(row) == len(columns) for row in rows)
    kept = sent(report, annotate=lambda tokens, phase: [t.with_text("canary") for t in tokens])
    _, columns, rows = kept.drawn[1]
    assert tuple(columns) == COLUMNS
    assert {row[COLUMNS.index("text")] for row in rows} <= {"canary"}


def test_the_page_comes_last_and_the_run_is_finished_once(tmp_path):
    writer = RecordWriter(tmp_path)
    writer.step(make_report(1))
    writer.close()
    sink = TrackerSink(Kept(), run_dir=tmp_path)
    sink(make_report(1))
    sink.close(LONG)
    sink.close(LONG)
    [(html, step)] = sink.tracker.pages
    assert step == 1
    assert html.startswith("<!doctype html>")
    assert sink.tracker.finished == 1


def test_a_missing_record_costs_the_page_alone(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "klmonitor")
    kept = sent(make_report(1), run_dir=tmp_path / "none")
    assert (kept.pages, kept.finished, list(kept.rows)) == ([], 1, [1])
    assert "no page in kept" in caplog.text


def test_a_tracker_that_raises_is_counted_and_the_next_report_arrives():
    class Failing(Kept):
        def log(self, row, step):
            if step == 1:
                raise OSError("no space")
            super().log(row, step)

    sink = TrackerSink(Failing())
    for step in (1, 2):
        sink(make_report(step))
    sink.close(LONG)
    assert (sink.errors, list(sink.tracker.rows)) == (1, [2])


@pytest.mark.parametrize("name", ["trackio", "mlflow", "swanlab"])
def test_a_library_that_is_missing_is_named_with_its_extra(name, monkeypatch):
    from klmonitor.sinks.table import SinkOptions

    monkeypatch.setitem(sys.modules, name, None)
    [kind] = [kind for kind in TABLE if kind.name == name]
    with pytest.raises(ImportError, match=rf'pip install "klmonitor\[{name}\]"'):
        kind.make(SinkOptions())


# --- the real ones -----------------------------------------------------------------------------
def arrived(name: str, place: Path):
    """What `tracked_run` sent, and the directory that the library wrote to."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed (make test-trackers installs it)")
    own = {"TRACKIO_DIR": str(place / "trackio"), "HOME": str(place)}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("tracked_run.py"), name],
        cwd=place, env={**os.environ, **own}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "klmonitor failed" not in done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"due"')]
    found = json.loads(lines[-1])
    assert found["alerts"]
    return {int(step): row for step, row in found["due"].items()}, dict(found["alerts"])


def test_a_run_arrives_whole_in_trackio(tmp_path):
    due, alerts = arrived("trackio", tmp_path)
    base = sqlite3.connect(tmp_path / "trackio" / "klmonitor.db")
    rows, drawn = {}, set()
    for step, packed in base.execute("select step, metrics from metrics"):
        row = json.loads(packed)
        drawn |= {value["_type"] for value in row.values() if isinstance(value, dict)}
        rows.setdefault(step, {}).update(
            {key: value for key, value in row.items() if not isinstance(value, dict)}
        )
    assert rows == {step: pytest.approx(row, rel=1e-12) for step, row in due.items()}
    assert drawn == {"trackio.histogram", "trackio.table", "trackio.html"}
    told = {title.split(":")[0]: (text, step) for title, text, step in base.execute(
        "select title, text, step from alerts")}  # fmt: skip
    assert told == {kind: (text, 3) for kind, text in alerts.items()}


def test_a_run_arrives_whole_in_mlflow(tmp_path):
    due, alerts = arrived("mlflow", tmp_path)
    base = sqlite3.connect(tmp_path / "mlflow.db")
    rows = {}
    for name, value, step in base.execute("select key, value, step from metrics"):
        rows.setdefault(step, {})[name] = value
    assert rows == {step: pytest.approx(row, rel=1e-12) for step, row in due.items()}
    tags = dict(base.execute("select key, value from tags"))
    for kind, text in alerts.items():
        assert tags[f"klmonitor/alert/{kind}/policy_ref"] == text
    assert tags["klmonitor/alert"] in alerts.values()
    assert list(base.execute("select status from runs")) == [("FINISHED",)]
    [page] = tmp_path.rglob("artifacts/klmonitor/report.html")
    assert page.read_text().startswith("<!doctype html>")
    tables = [json.loads(file.read_text()) for file in tmp_path.rglob("tokens/step_*.json")]
    assert tables
    assert all(len(row) == len(one["columns"]) for one in tables for row in one["data"])


def test_a_run_arrives_whole_in_swanlab(tmp_path):
    due, alerts = arrived("swanlab", tmp_path)
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record

    [file] = tmp_path.rglob("run-*.swanlab")
    data = file.read_bytes()
    rows, finished = {}, False
    for packed in records(data, b":SWL", struct.unpack_from("<H", data, 4)[0]):
        record = Record.FromString(packed)
        kind = record.WhichOneof("record_type")
        finished |= kind == "finish"
        if kind == "scalar":
            one = record.scalar
            rows.setdefault(one.step, {})[one.key] = one.value.number
    assert finished
    assert rows == {step: pytest.approx(row, rel=1e-6) for step, row in due.items()}
    texts = [one.read_text() for one in tmp_path.rglob("media/text/003-*.txt")]
    assert all(text in texts for text in alerts.values())
    [page] = tmp_path.rglob("media/html/003-*.html")
    assert page.read_text().startswith("<!doctype html>")
