"""What a real offline wandb run holds besides numbers, and what it must not hold."""

import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from klmonitor import Monitor
from klmonitor.cli import main
from klmonitor.dashboard.heat import BOUNDS, ROWS, tokens_by_row
from klmonitor.record import RecordWriter, read_run
from klmonitor.sinks import WandbSink, queued, wandbmedia
from klmonitor.sinks import media as shared_media
from klmonitor.sinks import wandb as wandb_sink
from klmonitor.sinks.tokentable import COLUMNS
from tests.helpers.reports import make_alert, make_report, make_token, small_report
from tests.helpers.wandb_reader import read_wandb

wandb = pytest.importorskip("wandb")

LONG = 60.0
TEXT = "zxqcanaryj7731"
SETTINGS = {"console": "off", "silent": True, "x_disable_stats": True, "disable_git": True}


@pytest.fixture
def run(tmp_path):
    """An offline run below `tmp_path`, as a trainer would open it."""
    one = wandb.init(
        project="test", dir=str(tmp_path), mode="offline", settings=wandb.Settings(**SETTINGS)
    )
    yield one
    one.finish()


def directory(run):
    return Path(run.dir).parent


def media(found, key):
    """Rows that have a medium -> what is stored of it, which wandb takes apart by its fields."""
    return [
        (row, {name[len(key) + 1 :]: row[name] for name in row if name.startswith(key + "/")})
        for row in found.rows
        if f"{key}/_type" in row
    ]


def finished(run):
    run.finish()
    return read_wandb(directory(run))


def files_with(text, *places):
    return [
        path
        for place in places
        for path in Path(place).rglob("*")
        if path.is_file() and text.encode() in path.read_bytes()
    ]


def annotate(tokens, phase):
    return [replace(token, text=TEXT) for token in tokens]


def watch_some_steps(run_dir, steps=range(7), **options):
    """A monitor whose tokens have the canary as their text; an alert opens at step 4."""

    def odd(report):
        return "a finding" if report.step == 4 else None

    monitor = Monitor(
        run_dir,
        sinks=["wandb", "tensorboard"],
        rules={"preset": "quiet", "gap": False, "limit": False, "own": odd},
        annotate=annotate,
        **options,
    )
    torch.manual_seed(0)
    for step in steps:
        lp = -torch.rand(8, 32) - 0.1
        ids = torch.arange(256).reshape(8, 32)
        monitor.observe(policy=lp, ref=lp + torch.randn(8, 32), token_ids=ids)
        monitor.step(step)
    monitor.close()
    assert monitor.errors == 0


def test_a_run_gets_histograms_a_table_and_the_page_and_no_text(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(queued, "MEDIA_EVERY", 3)
    run_dir = tmp_path / "record"
    watch_some_steps(run_dir)
    found = finished(run)
    steps = [0, 3, 4]  # the first, one three steps later, and the alert's
    with_histogram = media(found, "kl/policy_ref/log_ratio")
    assert [row["klmonitor/step"] for row, _ in with_histogram] == steps
    reports = {report.step: report.pairs["policy_ref"] for report in read_run(run_dir).reports}
    for row, histogram in with_histogram:
        assert histogram["_type"] == "histogram"
        assert histogram["bins"] == pytest.approx(BOUNDS.tolist())
        edges, counts = zip(*reports[row["klmonitor/step"]].histogram, strict=True)
        assert histogram["values"] == tokens_by_row(edges, counts).tolist()
        assert sum(histogram["values"]) == 256
        assert row["kl/policy_ref/k1/mean"] == reports[row["klmonitor/step"]].k1.mean
    tables = media(found, "kl/extreme_tokens")
    assert [row["klmonitor/step"] for row, _ in tables] == steps
    for step, (_, stored) in zip(steps, tables, strict=True):
        body = json.loads((directory(run) / "files" / stored["path"]).read_text())
        assert body["columns"] == [name for name in COLUMNS if name != "text"]
        ids = [row[body["columns"].index("token id")] for row in body["data"]]
        assert {row[0] for row in body["data"]} == {step}
        assert len(set(ids)) == len(ids) >= 8
        assert set(ids) <= set(range(256))
    [(_, page)] = media(found, "klmonitor/report")
    html = (directory(run) / "files" / page["path"]).read_text(encoding="utf-8")
    assert "steps 0 to 6, pairs policy_ref" in html
    out = tmp_path / "out" / "report.html"
    out.parent.mkdir()
    assert main(["report", str(run_dir), "-o", str(out)]) == 0
    assert html == out.read_text(encoding="utf-8")
    assert files_with(TEXT, directory(run), out.parent, run_dir) == [run_dir / "tokens.jsonl"]
    assert list((run_dir / "tensorboard").iterdir())


@pytest.mark.parametrize("log_tokens", [True, False])
def test_text_goes_where_the_user_lets_it(run, tmp_path, log_tokens):
    run_dir = tmp_path / "record"
    watch_some_steps(run_dir, steps=[1], log_tokens=log_tokens)
    found = finished(run)
    kinds = {path.suffixes[-1] for path in files_with(TEXT, directory(run), run_dir)}
    assert kinds == ({".json", ".jsonl"} if log_tokens else set())
    assert len(media(found, "kl/extreme_tokens")) == (1 if log_tokens else 0)
    assert len(media(found, "kl/policy_ref/log_ratio")) == 1


class FakeRun:
    """A run in memory."""

    def __init__(self):
        self.settings = type("Settings", (), {"mode": "offline"})
        self.rows = []
        self.step = 0
        self.finished = False

    def define_metric(self, *names, **options):
        pass

    def alert(self, *words, **options):
        pass

    def log(self, row, **how):
        self.rows.append(row)

    def finish(self):
        self.finished = True

    def media(self):
        """The media by the step that they belong to."""
        kinds = (wandb.Histogram, wandb.Table, wandb.Html)
        return {
            row["klmonitor/step"]: [type(v).__name__ for v in row.values() if isinstance(v, kinds)]
            for row in self.rows
            if any(isinstance(value, kinds) for value in row.values())
        }


def full_report(step, **changes):
    report = make_report(step)
    pair = replace(report.pairs["policy_ref"], extremes=(make_token(), make_token(1)))
    return replace(report, pairs={"policy_ref": pair}, **changes)


def test_media_come_first_every_fifty_steps_and_with_alerts():
    run = FakeRun()
    sink = WandbSink(run, metrics=())
    for step in (3, 4, 52, 53, 54):
        sink(full_report(step))
    sink(full_report(60, phase="eval"))
    sink(full_report(61, alerts=(make_alert(61),)))
    sink(full_report(110))
    sink(full_report(111))
    sink(full_report(5))  # resumed from a checkpoint
    sink.close(LONG)
    assert run.media() == {step: ["Histogram", "Table"] for step in (3, 53, 61, 111, 5)}


def test_what_there_is_none_of_is_not_logged():
    run = FakeRun()
    sink = WandbSink(run, metrics=())
    sink(small_report(1))
    sink(make_report(2))
    sink.close(LONG)
    assert run.media() == {2: ["Histogram"]}


def test_a_histogram_keeps_every_token_in_its_place():
    d = [-1000.0, -0.001, 0.0, 0.7, 0.72, 1e9]
    [histogram] = wandbmedia.histograms(
        replace(
            make_report(1),
            pairs={
                "policy_ref": replace(
                    make_report(1).pairs["policy_ref"], histogram=tuple((x, 2.0) for x in d)
                )
            },
        )
    ).values()
    assert len(histogram.bins) == ROWS + 1
    filled = {
        (low, high): count
        for low, high, count in zip(
            histogram.bins, histogram.bins[1:], histogram.histogram, strict=False
        )
        if count
    }
    assert list(filled.values()) == [2.0, 4.0, 2.0, 2.0, 2.0]
    assert next(iter(filled))[0] == -64
    assert list(filled)[-1][1] == 64
    (low, high), *_ = [bounds for bounds in filled if bounds[0] <= 0.705 <= bounds[1]]
    assert high / low == pytest.approx(2**0.5)


def record(path):
    writer = RecordWriter(path)
    for step in range(3):
        writer.step(make_report(step))
    assert writer.close(LONG)
    return path


def test_no_record_no_page_and_a_reason(tmp_path, caplog):
    caplog.set_level(logging.INFO, "klmonitor")
    run = FakeRun()
    sink = WandbSink(run)
    sink(make_report(1))
    sink.close(LONG)
    assert "no page in wandb: the run keeps no record, give it a run_dir" in caplog.text
    assert not any("klmonitor/report" in row for row in run.rows)


@pytest.mark.parametrize("limit", ["RECORD_BYTES", "PAGE_BYTES"])
def test_a_page_that_is_too_large_is_left_out_with_the_remedy(tmp_path, caplog, monkeypatch, limit):
    monkeypatch.setattr(shared_media, limit, 1000)
    run = FakeRun()
    sink = WandbSink(run, run_dir=record(tmp_path))
    sink(make_report(1))
    sink.close(LONG)
    [message] = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert f"write it with: klmonitor report {tmp_path}" in message
    assert not any("klmonitor/report" in row for row in run.rows)


@pytest.mark.parametrize("error", [KeyError("x"), OSError(5, "gone"), MemoryError()])
def test_a_page_that_fails_costs_itself_alone(tmp_path, caplog, monkeypatch, error):
    def fail(run_dir):
        raise error

    monkeypatch.setattr(wandb_sink, "page", fail)
    run = FakeRun()
    monkeypatch.setattr(wandb_sink, "_find_run", lambda: (run, True))
    sink = WandbSink(run_dir=record(tmp_path))
    sink(make_report(1))
    sink.close(LONG)
    sink.close(LONG)
    assert run.finished
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1


def test_media_that_fail_cost_no_row(tmp_path, caplog, monkeypatch):
    def fail(report):
        raise ValueError("no")

    monkeypatch.setattr(wandb_sink, "histograms", fail)
    run = FakeRun()
    sink = WandbSink(run)
    for step in range(0, 200, 50):
        sink(full_report(step))
    sink.close(LONG)
    assert [row["klmonitor/step"] for row in run.rows] == [0, 50, 100, 150]
    assert sink.errors == 4
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1


def test_a_page_that_takes_too_long_is_not_waited_for(tmp_path, caplog, monkeypatch):
    stall = threading.Event()
    monkeypatch.setattr(wandb_sink, "page", lambda run_dir: stall.wait() and {})
    sink = WandbSink(FakeRun(), run_dir=record(tmp_path))
    sink(make_report(1))
    sink.close(0.05)
    stall.set()
    assert "did not finish in time" in caplog.text


def test_a_run_that_was_finished_before_gets_no_page_and_no_error(run, tmp_path, caplog):
    sink = WandbSink(run, run_dir=record(tmp_path / "record"))
    sink(make_report(1))
    found = finished(run)
    sink.close(LONG)
    assert sink.errors == 0
    assert not any(r.levelno >= logging.WARNING for r in caplog.records)
    assert found.column("kl/policy_ref/k1/mean")


def test_who_closes_nothing_has_the_page_at_exit(tmp_path):
    body = """
        import sys, wandb
        from klmonitor.record import RecordWriter
        from klmonitor.sinks import WandbSink
        from tests.helpers.reports import make_report
        settings = wandb.Settings(console="off", silent=True, x_disable_stats=True)
        run = wandb.init(project="test", dir=sys.argv[1], mode="offline", settings=settings)
        record = RecordWriter(sys.argv[1] + "/record")
        sink = WandbSink(run, run_dir=record.path)
        for step in range(3):
            record.step(make_report(step))
            sink(make_report(step))
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(body), str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env={
            k: v for k, v in os.environ.items() if not k.startswith("WANDB_")
        },  # no shared service
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stderr == ""
    found = read_wandb(tmp_path / "wandb")
    [(_, page)] = media(found, "klmonitor/report")
    [file] = tmp_path.rglob(Path(page["path"]).name)
    assert "steps 0 to 2" in file.read_text(encoding="utf-8")
