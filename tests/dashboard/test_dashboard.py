"""What the page is given: columns that agree with the record, files with no foreign source."""

import base64
import json
import math
import random
import re
import struct
import threading
import urllib.error
import urllib.request
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from klmonitor import Penalty
from klmonitor.cli import main
from klmonitor.commands.watch import Tail
from klmonitor.dashboard.columns import RunColumns, is_shown
from klmonitor.dashboard.document import document, summary
from klmonitor.dashboard.heat import HALF, ROWS, heat_columns
from klmonitor.dashboard.pull import curves
from klmonitor.dashboard.server import PageServer
from klmonitor.dashboard.source import RecordSource, answer, run_names
from klmonitor.monitor import Monitor
from klmonitor.record import RecordWriter, read_run
from klmonitor.record.rows import report_to_row
from klmonitor.record.stepevent import step_bytes
from klmonitor.rules import parse_rules
from klmonitor.rules.spikes import SPIKE
from tests.helpers.reports import make_alert, make_report, make_token, small_report

QUIET_Z = parse_rules("quiet").thresholds["spike"]["z"]


@pytest.fixture
def run_dir(tmp_path):
    path = tmp_path / "runs" / "math" / "klmonitor"
    writer = RecordWriter(path, meta={"trainer": "GRPOTrainer"})
    for step in range(1, 31):
        writer.step(make_report(step, "policy_ref", "old_policy"))
        writer.tokens(step, [make_token(position=step, text=f"tok{step}")])
    writer.alert(make_alert(step=7))
    writer.close()
    return path


def numbers(packed, code):
    data = base64.b64decode(packed)
    return struct.unpack(f"<{len(data) // struct.calcsize(code)}{code}", data)


def ask(source, question, **query):
    return json.loads(answer(source, question, {k: str(v) for k, v in query.items()}))


def test_the_page_gets_what_the_record_holds(run_dir):
    data = ask(RecordSource([run_dir]), "data", run=0)
    record = read_run(run_dir)
    assert numbers(data["steps"], "d") == tuple(report.step for report in record.reports)
    for name in ("policy_ref", "old_policy"):
        for metric, packed in data["pairs"][name]["metrics"].items():
            if metric in ("log_ratio/p25", "log_ratio/p75"):
                continue  # not in the record: read off the histogram
            expected = [report.pairs[name][metric] for report in record.reports]
            assert numbers(packed, "f") == pytest.approx(expected, rel=1e-6), metric
    assert [alert["step"] for alert in data["alerts"]] == [7]
    assert data["meta"] == {"trainer": "GRPOTrainer"}


def test_the_verdict_at_a_step_is_explain_of_its_report(run_dir):
    details = ask(RecordSource([run_dir], tokens_text=True), "step", run=0, step=9)
    report = next(r for r in read_run(run_dir).reports if r.step == 9)
    assert "\n".join(details["explain"].values()) == report.explain()
    assert [token["text"] for token in details["tokens"]] == ["tok9"]
    assert details["tokens"][0]["token_id"] == "42"
    untold = ask(RecordSource([run_dir]), "step", run=0, step=9)["tokens"]
    assert all("text" not in token for token in untold), "text is for those who ask for it"


def test_only_what_is_new_is_sent_again(tmp_path):
    writer = RecordWriter(tmp_path)
    for step in range(1, 31):
        writer.step(make_report(step, "policy_ref", "old_policy"))
    writer.alert(make_alert(step=7))
    assert writer.flush()
    source = RecordSource([tmp_path])
    first = ask(source, "data", run=0)
    writer.step(make_report(31, "policy_ref"))
    writer.close()
    more = ask(source, "data", run=0, rows=30, alerts=1, generation=first["generation"])
    assert (more["rows"], numbers(more["steps"], "d"), more["alerts"]) == (30, (31.0,), [])
    missing = numbers(more["pairs"]["old_policy"]["metrics"]["k1/mean"], "f")
    assert missing[0] != missing[0]


def resume(run_dir, after, *reports):
    writer = RecordWriter(run_dir)
    writer.resume(after)
    for report in reports:
        writer.step(report)
    assert writer.close()


def test_a_run_that_was_resumed_from_an_earlier_step_is_sent_again_as_it_is_now(run_dir):
    source = RecordSource([run_dir])
    first = ask(source, "data", run=0)
    resume(run_dir, 6, small_report(7, k1__mean=77.0), small_report(8, k1__mean=88.0))
    again = ask(source, "data", run=0, rows=30, alerts=1, generation=first["generation"])
    assert again["rows"] == 0
    assert numbers(again["steps"], "d") == tuple(range(1, 9))
    assert numbers(again["pairs"]["policy_ref"]["metrics"]["k1/mean"], "f")[6:] == (77, 88)
    assert again["alerts"] == [], "the alert was of the steps that were overwritten"
    assert ask(source, "step", run=0, step=9) == {"explain": {}, "tokens": []}
    fresh = ask(RecordSource([run_dir]), "data", run=0)
    assert {**again, "generation": 0} == {**fresh, "generation": 0}


def test_a_metric_and_a_pair_that_come_late_are_nan_before():
    columns = RunColumns("late")
    for report in (small_report(1), small_report(2, spike__z=3.0), make_report(3, "old_ref")):
        columns.add_row(report_to_row(report))
    data = columns.data()
    z = numbers(data["pairs"]["policy_ref"]["metrics"]["spike/z"], "f")
    assert [value == value for value in z] == [False, True, False]
    late = numbers(data["pairs"]["old_ref"]["metrics"]["k1/mean"], "f")
    assert [value == value for value in late] == [False, False, True]


def test_evaluations_are_not_drawn_among_training_steps():
    columns = RunColumns("both")
    columns.add_row(report_to_row(small_report(1)))
    columns.add_row(report_to_row(small_report(2, phase="eval")))
    assert columns.steps == [1]


def heat_column(edges, counts):
    return heat_columns([(edges, counts)])[0]


@pytest.mark.parametrize(("d", "row"), [(0.0, HALF), (1e-9, HALF), (1e9, ROWS - 1), (-1e9, 0)])
def test_ends_of_the_heat_map(d, row):
    column = heat_column([d], [5])
    assert [i for i, byte in enumerate(column) if byte] == [row]
    assert column[row] == 255


def test_the_heat_map_is_antisymmetric_and_ordered():
    edges = [0.002 * 1.3**i for i in range(40)]
    rows = [next(i for i, b in enumerate(heat_column([d], [1])) if b) for d in edges]
    mirrored = [next(i for i, b in enumerate(heat_column([-d], [1])) if b) for d in edges]
    assert rows == sorted(rows)
    assert [2 * HALF - row for row in rows] == mirrored


def test_rounded_edges_fall_into_no_lower_row():
    exact = [2.0**e * m for e in range(-8, 5) for m in (1, 1.5)]
    rows = [heat_column([float(f"{edge:.3g}")], [1]).index(255) for edge in exact]
    assert rows == list(range(rows[0], rows[0] + len(exact)))


def test_heat_is_the_log_of_the_share():
    column = heat_column([-1.0, 1.0], [1, 999])
    few, many = (byte for byte in column if byte)
    assert (many - few) / 254 * 7 == pytest.approx(2.9996, abs=0.03)
    assert heat_column([], []) == bytes(ROWS)


def test_quartiles_come_from_the_buckets():
    edges = [-2.0, -1.0, 1.0, 2.0]
    steps = [(edges, [25, 25, 25, 25]), ([], []), (edges[1:], [1, 97, 1]), (edges, [0, 0, 0, 0])]
    _, found = heat_columns(steps, (0.5, 0.25))
    assert found[0].tolist() == [-1.0, -2.0]
    assert found[2].tolist() == [1.0, 1.0]
    assert np.isnan(found[[1, 3]]).all()


def test_a_step_does_not_depend_on_those_computed_with_it():
    rng = random.Random(0)
    steps = []
    for size in (0, 7, 1, 40, 3):
        edges = sorted(rng.choice((-1, 1)) * 2.0 ** rng.uniform(-10, 7) for _ in range(size))
        steps.append((edges, [rng.randrange(1000) for _ in edges]))
    heat, found = heat_columns(steps, (0.25, 0.75))
    alone = [heat_columns([step], (0.25, 0.75)) for step in steps]
    assert heat == b"".join(one for one, _ in alone)
    np.testing.assert_array_equal(found, np.concatenate([q for _, q in alone]))


def test_runs_are_named_by_what_tells_them_apart(tmp_path):
    a, b = tmp_path / "a" / "klmonitor", tmp_path / "b" / "klmonitor"
    assert run_names([a, b]) == ["a", "b"]
    assert run_names([a]) == ["a"]


def test_records_are_found_below_a_directory(run_dir):
    assert [run.name for run in RecordSource([run_dir.parent.parent]).runs()] == ["math"]
    with pytest.raises(FileNotFoundError, match="no record in"):
        RecordSource([run_dir.parent / "nothing"])


@pytest.mark.parametrize(
    ("rules", "spike", "said"),
    [
        ({"spike": {"z": 7}}, {"z": 7, "known": True}, "Alert rules: default, spike z = 7"),
        ({"spike": False}, {"z": None, "known": True}, "Alert rules: default, spike off"),
        ({"spike": {"z": math.inf}}, {"z": None, "known": True}, "spike z = 1.79769e+308"),
        ("quiet", {"z": QUIET_Z, "known": True}, "Alert rules: quiet\n"),
    ],
)
def test_the_page_knows_the_threshold_that_was_in_force(tmp_path, rules, spike, said):
    """A resumed run's last start decides."""
    state = {}
    for number, one in enumerate(("sensitive", rules)):
        monitor = Monitor(tmp_path, rules=one)
        if number:
            monitor.load_state_dict(state)
        monitor.observe(policy=torch.zeros(2, 8) - 1, ref=torch.zeros(2, 8) - 2)
        monitor.step(number)
        state = monitor.state_dict()
        monitor.close()
    source = RecordSource([tmp_path])
    assert ask(source, "data", run=0)["spike"] == spike
    assert said in summary(source.runs()[0])
    assert json.loads((tmp_path / "run.json").read_text())["starts"][0]["rules"]["preset"] == (
        "sensitive"
    )


def test_a_record_without_rules_gets_the_default_threshold(run_dir):
    source = RecordSource([run_dir])
    assert ask(source, "data", run=0)["spike"] == {"z": SPIKE.thresholds["z"], "known": False}
    assert "Alert rules" not in summary(source.runs()[0])


# --- the file ----------------------------------------------------------------------------------
def test_the_file_runs_only_its_own_scripts_and_fetches_nothing(run_dir):
    html = document(RecordSource([run_dir]))
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)[1]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert not re.search(r'<(script|link|img|iframe)[^>]+(src|href)="(?!data:,)', html)
    assert not re.search(r"\son[a-z]+=\"", html)


def test_the_file_has_token_text_only_if_asked(run_dir, tmp_path, capsys):
    out = tmp_path / "report.html"
    assert main(["report", str(run_dir), "-o", str(out)]) == 0
    assert "tok9" not in out.read_text()
    assert main(["report", str(run_dir), "-o", str(out), "--token-text"]) == 0
    assert "tok9" in out.read_text()
    assert str(out) in capsys.readouterr().out


def test_the_file_begins_with_a_summary(run_dir):
    html = document(RecordSource([run_dir]))
    body = json.loads(re.search(r'id="klm-data">(.*?)</script>', html, re.DOTALL)[1])
    for said in ("Verdict at the last step (30)", "[warn] spike", "Worst steps", "torch", "GRPO"):
        assert said in body["summary"]
    assert len(body["steps"][0]) == 30


def test_hostile_text_cannot_end_the_data_block(tmp_path):
    writer = RecordWriter(tmp_path / "x", meta={"name": "</script><script>alert(1)</script><!--"})
    writer.step(make_report(1))
    writer.tokens(1, [make_token(text="</script><img src=x onerror=alert(1)>\u202e")])
    writer.close()
    html = document(RecordSource([tmp_path / "x"]))
    assert "alert(1)<" not in html
    assert "<img" not in html


def test_a_run_that_is_not_there_is_one_line(tmp_path, capsys):
    for command in ("report", "serve", "watch"):
        assert main([command, str(tmp_path / "none")]) == 2
        assert f"klmonitor {command}: no record in" in capsys.readouterr().err


# --- the server --------------------------------------------------------------------------------
@pytest.fixture
def server(run_dir):
    with PageServer(RecordSource([run_dir])) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(server, path, host=None):
    request = urllib.request.Request(server.url + path, headers={"Host": host} if host else {})
    with urllib.request.urlopen(request) as reply:
        return reply.headers, reply.read()


def test_the_page_and_its_files_are_served_with_a_policy(server):
    headers, page = fetch(server, "")
    assert "script-src 'self'" in headers["Content-Security-Policy"]
    for name in re.findall(rb'(?:src|href)="([^"]+)"', page):
        if name != b"data:,":
            assert len(fetch(server, name.decode())[1]) > 50
    assert json.loads(fetch(server, "api/runs")[1])["runs"] == ["math"]


@pytest.mark.parametrize(
    "path",
    ["../columns.py", "api/data?run=9", "api/data?run=x", "api/other", "%2e%2e/page.py", "nope.js"],
)
def test_nothing_else_is_served(server, path):
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetch(server, path)
    refused.value.close()
    assert refused.value.code == 404


def test_another_hosts_name_is_refused(server):
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetch(server, "api/runs", host="evil.example:80")
    refused.value.close()
    assert refused.value.code == 404


def test_groups_are_drawn():
    assert is_shown("group/math/k1/mean")
    assert not is_shown("cv/lambda")


# --- the terminal ------------------------------------------------------------------------------
def test_watch_shows_the_last_steps_and_the_alerts_in_80_columns(run_dir, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["watch", str(run_dir), "--once", "--rows", "3"]) == 0
    said = capsys.readouterr().out
    report = read_run(run_dir).reports[-1].pairs["policy_ref"]
    rows = [line for line in said.splitlines() if line[:2] in ("28", "29", "30")]
    assert [line.split()[:2] for line in rows] == [
        [step, pair] for step in ("28", "29", "30") for pair in ("policy_ref", "old_policy")
    ]
    assert all(len(line) <= 80 for line in said.splitlines())
    shown = [float(cell) for cell in re.findall(r"-?[\d.]+(?:e[+-]?\d+)?", rows[-2])[1:6]]
    k1, k2, k3 = report.k1, report.k2, report.k3
    assert shown == pytest.approx([k1.mean, k1.se, k2.mean, k3.mean, k3.se], rel=0.5, abs=1e-4)
    assert "klmonitor [warn] step 7 spike: k3 is 12 x its level" in said
    assert main(["watch", str(run_dir), "--json", "--rows", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["step"] for row in found["steps"]] == [28, 29, 30]
    assert [event["step"] for event in found["events"]] == [7]


def test_watch_takes_what_is_added(run_dir):
    tail = Tail(run_dir, rows=4)
    tail.view()
    resume(run_dir, 30, make_report(31))
    assert [str(cell) for cell in tail.view().renderables[1].columns[0].cells][-1] == "31"
    resume(run_dir, 28, make_report(29))
    assert "31" not in [str(cell) for cell in tail.view().renderables[1].columns[0].cells]


def test_watch_shows_no_markup_or_control_characters(tmp_path, capsys):
    writer = RecordWriter(tmp_path)
    writer.step(make_report(1))
    writer.alert(make_alert(step=1, message="[red]\x1b[31mfake"))
    writer.close()
    assert main(["watch", str(tmp_path), "--once"]) == 0
    said = capsys.readouterr().out
    assert "[red]" in said
    assert "\x1b" not in said


# --- TensorBoard's events ----------------------------------------------------------------------
def test_an_event_holds_what_the_page_draws_without_text():
    token = make_token(3, text="secret")
    report = make_report(4, alerts=(make_alert(step=4),))
    pair = replace(report.pairs["policy_ref"], extremes=(token,))
    row = json.loads(step_bytes(replace(report, pairs={"policy_ref": pair})))
    columns = RunColumns("run")
    columns.add_tokens(row)
    columns.add_row(row)
    (kept,) = columns.tokens_at(4)
    assert kept == replace(token, text=None)
    shown = columns.report_at("policy_ref", 0)
    for metric, value in report.pairs["policy_ref"].values.items():
        assert shown[metric] == pytest.approx(value, rel=1e-6)
    assert [alert["kind"] for alert in row["alerts"]] == ["spike"]
    total = sum(count for _, count in report.pairs["policy_ref"].histogram)
    assert sum(row["pairs"]["policy_ref"]["histogram"]["counts"]) == total


# --- the curve of the KL term -------------------------------------------------------------------
@pytest.mark.parametrize(
    "penalty",
    [
        Penalty("k3", clamp=10.0, beta=0.04),
        Penalty("k3", clamp_d=3.0),
        Penalty("k1", "reward"),
        Penalty("k3", ratio="differentiated"),
        Penalty("k3", clamp=10.0, clamp_d=20.0),
    ],
    ids=str,
)
def test_the_curve_is_the_terms_coefficient_and_steps_at_its_clamp(tmp_path, penalty):
    monitor = Monitor(tmp_path / "run", penalty=penalty)
    q = np.full((2, 8), -5.0)
    monitor.observe(policy=q, ref=q + 0.1)
    monitor.step(1)
    monitor.close()
    data = ask(RecordSource([tmp_path / "run"]), "data", run=0)
    curve = data["pull"]["policy_ref"]
    assert curve["term"] == str(penalty) == json.loads(data["meta"]["penalty"])["policy_ref"]
    assert "penalty_terms" not in data["meta"]
    d = np.array(curve["d"])
    assert (np.diff(d) > 0).all()
    np.testing.assert_allclose(d[[0, -1]], [-64, 64])
    np.testing.assert_allclose(curve["c"], penalty.coefficient(d).clip(-1e30, 1e30))
    assert len(curve["rows"]) == ROWS
    dead = np.array(curve["c"]) == 0
    for i in np.flatnonzero(dead[1:] != dead[:-1]):
        if d[i] and d[i + 1]:  # not c(0) = 0
            assert abs(d[i + 1] - d[i]) < 1e-4


def test_a_term_of_sequences_has_no_curve_and_nonsense_is_left_out():
    fields = asdict(Penalty("k1", "reward", returns="sequence"))
    found = curves({"old_ref": fields, "policy_ref": {"estimator": "k9"}, "rollout_old": 3})
    assert list(found) == ["old_ref"]
    assert "whole sequences" in found["old_ref"]["why"]
    assert curves(None) == curves("x") == {}
