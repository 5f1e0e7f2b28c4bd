"""The record under kills with resume, malformed lines and a long run.

A sample here; `make test-faults` (KLMONITOR_FAULTS=all) makes all of them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from klmonitor.cli import main
from klmonitor.dashboard.document import document
from klmonitor.dashboard.source import RecordSource, answer
from klmonitor.record import RecordWriter, read_run
from klmonitor.record.jsonl import LineReader
from klmonitor.replay.curve import load_run
from tests.helpers.reports import make_alert, make_report, make_token, small_report

ROOT = Path(__file__).parents[2]
ALL = os.environ.get("KLMONITOR_FAULTS") == "all"
KILLS = 200 if ALL else 4
SOAK = int(os.environ.get("KLMONITOR_SOAK", 200_000)) if ALL else 3000


# --- kills -------------------------------------------------------------------------------------
def numbers_in(directory):
    """Sequence numbers of a record's rows, marks, and lines that cannot be read."""
    found, marks, bad = [], [], 0
    for path in directory.glob("*.jsonl"):
        for line in path.read_bytes().split(b"\n")[:-1]:
            try:
                row = json.loads(line)
            except ValueError:
                bad += bool(line.strip())
                continue
            found.append(row["seq"])
            if "row" in row:
                marks.append(row)
    return found, marks, bad


def test_a_run_that_is_killed_and_resumed_loses_nothing_unmarked(tmp_path):
    run_dir, state, told = tmp_path / "run", tmp_path / "state", tmp_path / "told"
    rng = random.Random(5)
    unreadable = lost = 0
    highest = -1
    for start in range(KILLS):
        command = [sys.executable, "-m", "tests.faults.killed"]
        arguments = [str(run_dir), str(state), str(told), str(start)]
        with subprocess.Popen(
            [*command, *arguments], cwd=ROOT, stderr=subprocess.PIPE, env=os.environ
        ) as process:
            size = told.stat().st_size if told.exists() else 0
            deadline = time.monotonic() + 60
            while not told.exists() or told.stat().st_size <= size:
                assert process.poll() is None, process.stderr.read().decode()
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(rng.random() * 0.05)
            process.kill()
        acknowledged = [line.split()[0] for line in told.read_text().split("\n")[:-1]]
        numbers, _, bad = numbers_in(run_dir)
        unreadable += bad
        sizes = [int(number) for number in acknowledged if number != "None"]
        highest = max(sizes, default=-1)
        lost += len(set(range(highest + 1)) - set(numbers))
        assert len(numbers) == len(set(numbers)), "no number comes twice"
    assert (unreadable, lost) == (0, 0)
    assert highest > 20

    numbers, marks, _ = numbers_in(run_dir)
    assert sorted(numbers) == list(range(max(numbers) + 1)), "each number is there once"
    record = read_run(run_dir)
    assert (record.bad_lines, record.missing) == (0, 0)
    steps = [report.step for report in record.reports]
    dropped = {
        step
        for mark in marks
        if mark["row"] == "dropped"
        for step in range(mark["step"] + 1, mark["step"] + mark["count"] + 1)
    }
    assert set(range(1, steps[-1] + 1)) <= set(steps) | dropped, "a step that is gone is marked"
    starts = [round(report.pairs["policy_ref"]["x"] % 1 * 1000) for report in record.reports]
    assert starts == sorted(starts), "what a later start did again is the later start's"
    assert len(record.starts) == KILLS
    assert not (run_dir / "earlier").exists()


# --- malformed lines ---------------------------------------------------------------------------
GOOD = 12
PLACES = ("steps.jsonl", "tokens.jsonl", "alerts.jsonl", "notes.jsonl")
ODD = (
    None, True, -1, 2**70, 10**400, -3.5, "", "x\x1b[31m\ud800", [], {}, [1.0], [None], [[[]]],
    {"a": 1}, "NaN", 1e308, ["x"] * 3, {"step": {}}, float("inf"),
)  # fmt: skip
JUNK = (
    b"", b"\x00\x00\xff", b"[]", b"3", b"null", b'"x"', b"{}", b"{", b'{"step":', b"NaN",
    b"[" * 50_000, b'{"step":1,"x":' + b"[" * 900 + b"]" * 900 + b"}", b"\xff\xfe{\x00}\x00",
    b'{"seq":5,"row":"unheard of"}', b'{"format":99,"step":3,"pairs":{}}', b"x" * 100_000,
    b'{"seq":5,"step":3,"first_step":3,"pairs":{"a_b":{"values":{"k1/mean":1}}}}',
    b'{"step":1e999,"first_step":1,"pairs":{}}', b'{"row":"resumed","step":null}',
)  # fmt: skip


def leaves(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else ()
    items = list(enumerate(value[:2])) if isinstance(value, list) else items
    for key, item in items:
        yield from leaves(item, (*path, key))


def changed(row, rng):
    """A row with one place replaced or removed."""
    path = rng.choice([place for place in leaves(row) if place])
    owner = row
    for key in path[:-1]:
        owner = owner[key]
    if rng.random() < 0.3:
        del owner[path[-1]]
    else:
        owner[path[-1]] = rng.choice(ODD)
    return json.dumps(row).encode()


def made(directory):
    writer = RecordWriter(directory)
    for step in range(1, GOOD + 1):
        writer.step(make_report(step, "policy_ref", "old_policy"))
        writer.tokens(step, [make_token(step)])
    writer.alert(make_alert(5, cause="shifted", kinds=("spike", "gap")))
    assert writer.close(60)
    main(["note", str(directory), "new data", "--step", "4"])


READERS = {
    "read_run": lambda run: read_run(run),
    "page": lambda run: page_of(run),
    "report": lambda run: said("report", run, "-o", str(Path(run).parent / "report.html")),
    "report --json": lambda run: said(
        "report", run, "--json", "--token-text", "-o", str(Path(run).parent / "r.html")
    ),
    "watch": lambda run: said("watch", run, "--once"),
    "watch --json": lambda run: said("watch", run, "--json"),
    "backtest": lambda run: said("backtest", run),
    "backtest --json": lambda run: said("backtest", run, "--json"),
    "backtest steps.jsonl": lambda run: said("backtest", str(Path(run) / "steps.jsonl")),
    "tune": lambda run: said("tune", run),
    "status": lambda run: said("status", run),
    "status --json": lambda run: said("status", run, "--json"),
    "explain": lambda run: said("explain", run),
    "explain --json": lambda run: said("explain", run, "--json"),
    "note": lambda run: said("note", run, "x"),
    "resume": lambda run: resumed(run),
}
MALFORMED = 200 if ALL else 6


def said(*arguments):
    """What a command prints; it ends with 0, 1 or 2, `status` also with the level of a run."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([*map(str, arguments)])
    assert status in ((0, 10, 11) if arguments[0] == "status" else (0, 1, 2)), status
    assert "Traceback" not in err.getvalue()
    assert "\x1b" not in out.getvalue() + err.getvalue(), "nothing is done to a terminal"
    return out.getvalue() + err.getvalue()


def page_of(run):
    source = RecordSource([run])
    for question in ("data", "step"):
        json.loads(answer(source, question, {"run": "0", "step": "3"}))
    return document(source)


def resumed(run):
    writer = RecordWriter(run)
    writer.resume(GOOD)
    writer.step(small_report(GOOD + 1, x=1.0))
    assert writer.close(60)
    return read_run(run)


@pytest.mark.parametrize("reader", READERS)
def test_a_malformed_line_costs_itself_alone(reader, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    clean = tmp_path / "clean"
    with contextlib.redirect_stdout(io.StringIO()):
        made(clean)
    before = {name: (clean / name).read_bytes() for name in PLACES}
    good = read_run(clean)
    rng = random.Random(reader)
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_bytes((clean / "run.json").read_bytes())
    for number in range(MALFORMED):
        name = rng.choice(PLACES)
        lines = before[name].split(b"\n")[:-1]
        if rng.random() < 0.4:
            line = rng.choice(JUNK)
        else:
            line = changed(json.loads(rng.choice(lines)), rng)
        at = rng.randrange(len(lines) + 1)
        for other in PLACES:
            (run / other).write_bytes(before[other])
        (run / name).write_bytes(b"\n".join([*lines[:at], line, *lines[at:], b""]))
        READERS[reader](run)
        found = read_run(run)
        assert found.bad_lines <= 1 + (reader == "resume"), (name, line)
        if found.bad_lines and reader not in ("note", "resume"):
            assert [r.scalars() for r in found.reports] == [r.scalars() for r in good.reports]
            assert found.alerts == good.alerts, (number, line)
            assert found.tokens == good.tokens
            assert f"{name}: 1 line skipped: {at + 1}" in found.remarks
            told = READERS[reader](run)
            if isinstance(told, str) and "steps.jsonl" not in reader and "note" not in reader:
                assert f"1 line skipped: {at + 1}" in told.replace("\n", " "), reader


RUN_FILES = (
    b"", b"[]", b"{", b"[" * 10_000, b'{"meta": 3, "starts": 4}',
    b'{"starts": [{"rules": {"thresholds": []}}, 3], "id": []}',
    b'{"meta": {"a": ' + b"[" * 900 + b"]" * 900 + b"}}",
)  # fmt: skip


@pytest.mark.parametrize("content", RUN_FILES)
def test_a_malformed_run_file_costs_itself_alone(content, tmp_path):
    run = tmp_path / "run"
    with contextlib.redirect_stdout(io.StringIO()):
        made(run)
    (run / "run.json").write_bytes(content)
    for reader in ("read_run", "page", "report", "watch --json", "backtest", "tune"):
        READERS[reader](run)
    assert [report.step for report in read_run(run).reports] == list(range(1, GOOD + 1))


def test_a_line_without_end_is_bounded(tmp_path):
    path = tmp_path / "steps.jsonl"
    with path.open("wb") as file:
        file.write(b'{"a":1}\n{"b":"')
        for _ in range(20):
            file.write(b"x" * 2**20)
    reader = LineReader(path, dict)
    assert list(reader.poll()) == [{"a": 1}]
    with path.open("ab") as file:
        file.write(b'x"}\n{"a":3}\n')
    assert list(reader.poll()) == [{"a": 3}]
    assert (reader.bad_lines, reader.skipped) == (1, [2])


def test_a_file_that_is_cut_short_or_replaced_is_read_anew(tmp_path):
    with contextlib.redirect_stdout(io.StringIO()):
        made(tmp_path / "run")
    path = tmp_path / "run" / "steps.jsonl"
    source = RecordSource([tmp_path / "run"])

    def shown():
        data = json.loads(answer(source, "data", {"run": "0"}))
        fresh = json.loads(answer(RecordSource([tmp_path / "run"]), "data", {"run": "0"}))
        assert data["pairs"] == fresh["pairs"]
        assert data["steps"] == fresh["steps"]
        return source.runs()[0].steps

    assert shown() == list(range(1, GOOD + 1))
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:4], b""]))  # the same file, shorter
    assert shown() == [1, 2, 3, 4]
    path.write_bytes(b"\n".join([*lines[6:12], *lines[2:4], b""]))  # longer again, others
    assert set(shown()) == {3, 4, *range(7, 13)}
    other = tmp_path / "other"
    other.write_bytes(b"\n".join([*lines[:2], b""]))
    other.replace(path)  # another file
    assert shown() == [1, 2]
    path.unlink()
    assert shown() == []


# --- a long run --------------------------------------------------------------------------------
def test_a_long_run_takes_no_more_memory_disk_or_time_a_step(tmp_path):
    """Memory flat to 5 %, disk below the limit, alerts all kept, time a step flat."""
    limit = 60_000_000 if ALL else 3_000_000
    writer = RecordWriter(tmp_path, max_bytes=limit)
    reports = [make_report(step, "policy_ref") for step in range(64)]
    alerted, memory, seconds = [], [], []
    part = SOAK // 10
    for at in range(10):
        began = time.process_time()
        for step in range(at * part, (at + 1) * part):
            writer.step(_at(reports[step % 64], step))
            writer.tokens(step, [make_token(step)] * 4)
            if step % 97 == 0:
                writer.alert(make_alert(step))
                alerted.append(step)
            if step % 100 == 99:
                assert writer.flush(60)
        seconds.append(time.process_time() - began)
        memory.append(_resident())
        assert sum(path.stat().st_size for path in tmp_path.glob("*.jsonl")) <= limit
    assert writer.close(60)
    assert (writer.errors, writer.dropped) == (0, 0)
    record = read_run(tmp_path)
    assert [alert.step for alert in record.alerts] == alerted
    assert record.bad_lines == 0
    assert record.exact_until is not None
    print(f"soak: {SOAK} steps, MB {[round(one / 2**20) for one in memory]}, "
          f"ms a step {[round(1e3 * one / part, 3) for one in seconds]}, "
          f"{len(record.reports)} steps kept, {len(alerted)} alerts")  # fmt: skip
    if ALL:
        assert max(memory[3:]) <= 1.05 * memory[2]
        assert sum(seconds[7:]) <= 1.5 * sum(seconds[1:4]), "thinning costs the same all along"


def _at(report, step):
    import dataclasses

    return dataclasses.replace(report, step=step, first_step=step)


def _resident():
    """Bytes of memory in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_what_is_given_by_itself_is_read_too(tmp_path):
    with contextlib.redirect_stdout(io.StringIO()):
        made(tmp_path / "run")
    curve = load_run(str(tmp_path / "run" / "steps.jsonl"))
    assert [report.step for report in curve.reports] == list(range(1, GOOD + 1))
