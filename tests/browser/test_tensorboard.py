"""The "KL" tab in a real TensorBoard, with the fast and the slow loader."""

import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest

from klmonitor.record import read_run
from klmonitor.record.rows import token_to_row
from klmonitor.record.stepevent import PLUGIN, TAG, step_bytes, tensor_value
from klmonitor.sinks import TensorBoardSink
from tests.helpers.pages import HOSTILE_RUN, read, wait_until
from tests.helpers.reports import make_alert, make_report, make_token

CHARTS = ("estimators", "fan", "dominance", "variance", "heat", "outliers", "spike")
OF_TENSORBOARD = ("Multiple instances of Three.js", "404")
"""What its own page says: under a path prefix it does not find its fonts."""


@contextmanager
def tensorboard(logdir, *options, setup=""):
    """A TensorBoard on a free port; its address."""
    code = f"{setup}\nfrom tensorboard.main import run_main; run_main()"
    command = [sys.executable, "-c", code, "--logdir", str(logdir), "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if " at http" in line:
                yield line.split(" at ", 1)[1].split()[0].rstrip("/")
                return
        raise AssertionError("".join(lines))
    finally:
        process.terminate()
        process.wait(20)
        process.stderr.close()


@pytest.fixture(scope="session")
def logdir(demo, tmp_path_factory):
    """The demo's run as the sink writes it, and a second run."""
    where = tmp_path_factory.mktemp("logdir")
    reports = read_run(demo / "klmonitor").reports
    for name, shown in (("spike", reports), ("short", reports[:30])):
        sink = TensorBoardSink(where / name)
        for report in shown:
            sink(report)
        sink.close()
    return where


def open_tab(watched, url):
    """The tab's frame, once the page in it is drawn."""
    watched.page.goto(url + "/#klmonitor")
    watched.page.frame_locator("iframe").locator("html[data-ready]").wait_for(timeout=60_000)
    return next(frame for frame in watched.page.frames if frame.parent_frame)


@pytest.mark.parametrize("options", [(), ("--load_fast=false", "--path_prefix", "/a/b")])
def test_the_tab_shows_the_runs(watched, demo, logdir, options):
    with tensorboard(logdir, *options) as url:
        frame = open_tab(watched, url)
        wait_until(frame, "KLM.app.names.length === 2")
        assert frame.evaluate("KLM.app.names") == ["short", "spike"]
        frame.locator(".runs summary").click()
        frame.get_by_role("checkbox", name="short").uncheck()
        frame.get_by_role("checkbox", name="spike").check()
        alert = next(a for a in read(demo / "klmonitor" / "alerts.jsonl") if a["kind"] == "spike")
        frame.locator(".alert", has_text="spike ·").first.click()
        wait_until(frame, f"KLM.app.tokenTitle.textContent.endsWith(' {alert['step']}')")
        ids = frame.locator("#panel-tokens tbody tr td:nth-child(2)").all_inner_texts()
        assert str(alert["tokens"][0]["token_id"]) in ids
        for panel in CHARTS:
            assert frame.evaluate("s => probe.distinctColours(s)", f"#panel-{panel}") > 8, panel
    assert not [url for url in watched.missed if not url.endswith(".woff2")]
    watched.missed.clear()
    watched.said[:] = [line for line in watched.said if not any(t in line for t in OF_TENSORBOARD)]
    watched.assert_quiet()


def test_new_steps_and_new_runs_arrive_without_a_click(watched, demo, tmp_path):
    reports = read_run(demo / "klmonitor").reports
    sink = TensorBoardSink(tmp_path / "run")
    for report in reports[:20]:
        sink(report)
    with tensorboard(tmp_path, "--reload_interval", "1") as url:
        frame = open_tab(watched, url)
        wait_until(frame, "KLM.app.runs.length === 1 && KLM.app.runs[0].steps.length === 20")
        end = "KLM.app.charts[0].plot.scales.x.max"
        assert frame.evaluate(end) == reports[19].step
        assert frame.locator(".alert").count() == 0
        for report in reports[20:]:
            sink(report)
        wait_until(frame, f"KLM.app.runs[0].steps.length === {len(reports)}", seconds=60)
        wait_until(frame, f"{end} === {reports[-1].step}")
        frame.locator(".alert", has_text="spike ·").first.wait_for()
        sink.close()
        again = TensorBoardSink(tmp_path / "run" / "resumed")
        for report in reports[:5]:
            again(report)
        again.close()
        wait_until(frame, "KLM.app.names.length === 2", seconds=60)


HOSTILE_TOKENS = (
    "<img src=x onerror=alert(2)>",
    "\u202eright to left\u2066",
    "\x00\x1b[31m\n\u2028",
)


def test_hostile_runs_tokens_and_alerts_are_inert(watched, tmp_path, monkeypatch):
    """A log directory may come from anybody, text that our sink never writes included."""

    def with_text(report):
        row = json.loads(step_bytes(report))
        row["tokens"] = [token_to_row(make_token(i, t)) for i, t in enumerate(HOSTILE_TOKENS)]
        return tensor_value(TAG, PLUGIN, json.dumps(row).encode())

    monkeypatch.setattr("klmonitor.sinks.eventfiles.step_value", with_text)
    message = "<svg onload=alert(3)></svg><script>alert(4)</script>\u202e"
    for name in (HOSTILE_RUN, "other"):
        sink = TensorBoardSink(tmp_path / name)
        for step in range(3):
            alerts = (make_alert(step=1, message=message),) if step == 1 else ()
            sink(make_report(step, alerts=alerts))
        sink.close()
    with tensorboard(tmp_path) as url:
        frame = open_tab(watched, url)
        wait_until(frame, "KLM.app.names.length === 2")
        frame.locator(".runs summary").click()
        names = frame.locator(".runs label").all_inner_texts()
        assert names == ["<img src=x onerror=alert(1)>\\u{202e}gnp.exe", "other"]
        frame.get_by_role("checkbox", name="other").check()  # names stand in legends and alerts
        item = frame.locator(".alert", has_text=HOSTILE_RUN[:28]).first
        assert "<svg onload=alert(3)></svg><script>alert(4)</script>" in item.inner_text()
        item.click()
        frame.locator("#panel-tokens tbody tr").first.wait_for()
        texts = frame.locator("td.token").all_inner_texts()
        assert texts == [""] * len(HOSTILE_TOKENS), "the tab shows no text of any token"
        assert HOSTILE_RUN[:28] in frame.locator("#panel-estimators .legend").inner_text()
        item.hover()
        whole = frame.locator("#klm").inner_text()
        assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x1b]", whole)
        assert frame.locator("#klm img, #klm script, #klm svg").count() == 0
    said = [line for line in watched.said if not any(t in line for t in OF_TENSORBOARD)]
    assert said == []


def test_a_log_directory_without_our_data_says_how_to_get_them(watched, tmp_path):
    (tmp_path / "empty").mkdir()
    with tensorboard(tmp_path) as url:
        frame = open_tab(watched, url)
        assert "No run with klmonitor data is here" in frame.locator(".notes").inner_text()


BROKEN = "import sys; sys.modules['klmonitor.dashboard'] = None"


def test_a_tab_that_cannot_be_imported_costs_the_tab_alone(logdir):
    with tensorboard(logdir, setup=BROKEN) as url:
        deadline = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(url + "/data/plugins_listing") as reply:
                    listing = reply.read()
                break
            except urllib.error.URLError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        assert b'"scalars"' in listing
        assert b'"klmonitor"' not in listing
