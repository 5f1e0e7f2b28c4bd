"""Every start is its own run; who writes in a directory; what is lost is said in a row."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from klmonitor import Monitor, backtest
from klmonitor.record import RecordWriter, jsonl, lock, read_run
from klmonitor.record import writer as writer_module
from klmonitor.record.fresh import replaced
from klmonitor.record.lock import claim
from klmonitor.record.notices import Notice
from klmonitor.record.segments import earlier_in
from klmonitor.replay.curve import load_run
from tests.helpers.reports import make_alert, make_report, make_token, small_report

ROOT = Path(__file__).parents[2]
LONG = 60.0


def start(path, steps, value, resume=None, close=True):
    """One start: what it reported, by step."""
    writer = RecordWriter(path)
    if resume is not None:
        writer.resume(*resume)
    for step in steps:
        writer.step(small_report(step, k3__mean=value + step))
        writer.tokens(step, [make_token(step)])
    writer.alert(make_alert(steps[-1], message=f"of {value}"))
    if close:
        assert writer.close(LONG)
    else:
        assert writer.flush(LONG)
    return writer, {step: value + step for step in steps}


def shown(path):
    record = read_run(path)
    assert record.bad_lines == record.missing == 0
    return {r.step: r.pairs["policy_ref"]["k3/mean"] for r in record.reports}


@pytest.mark.parametrize("second", [range(1, 11), range(1, 4), range(1, 21), range(50, 60)],
                         ids=["fresh", "shorter", "longer", "elsewhere"])  # fmt: skip
def test_a_second_start_is_a_run_of_its_own(tmp_path, second):
    _, first = start(tmp_path, range(1, 11), 0.001)
    _, own = start(tmp_path, second, 0.002)
    assert shown(tmp_path) == own
    [before] = earlier_in(tmp_path)
    assert shown(before) == first
    assert [alert.message for alert in read_run(before).alerts] == ["of 0.001"]
    assert [alert.message for alert in read_run(tmp_path).alerts] == ["of 0.002"]
    _, third = start(tmp_path, range(1, 3), 0.003)
    assert [shown(path) for path in (*earlier_in(tmp_path), tmp_path)] == [first, own, third]
    assert [path.name for path in earlier_in(tmp_path)] == ["1", "2"]


def test_no_alert_is_of_two_starts(tmp_path):
    """A shorter second run at another level was spliced to the tail of the first."""
    start(tmp_path, range(1, 201), 5.0)
    start(tmp_path, range(1, 101), 0.01)
    curve = load_run(str(tmp_path))
    assert len(curve.reports) == 100
    k3 = [r.pairs["policy_ref"].k3.mean for r in curve.reports]
    assert backtest(k3) == backtest([0.01 + step for step in range(1, 101)])


def test_a_resumed_start_continues_and_marks_what_it_overwrites(tmp_path):
    writer, first = start(tmp_path, range(1, 11), 0.001)
    _, second = start(tmp_path, range(7, 9), 0.002, resume=(6, writer.run_id))
    expected = {step: value for step, value in first.items() if step <= 6} | second
    assert shown(tmp_path) == expected
    record = read_run(tmp_path)
    assert set(record.tokens) == set(expected)
    assert [alert.message for alert in record.alerts] == ["of 0.002"], "the other's was overwritten"
    assert not earlier_in(tmp_path)
    assert record.starts[1]["after"] == 6
    rows = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row.get("row") == "resumed"] == [7]
    numbers = [row["seq"] for row in rows]
    assert numbers == sorted(numbers)


def test_a_resume_of_another_run_is_a_start_of_its_own(tmp_path):
    writer, _ = start(tmp_path / "a", range(1, 5), 0.001)
    _, first = start(tmp_path / "b", range(1, 11), 0.002)
    _, second = start(tmp_path / "b", range(5, 7), 0.003, resume=(4, writer.run_id))
    assert shown(tmp_path / "b") == second
    assert [shown(path) for path in earlier_in(tmp_path / "b")] == [first]


def test_steps_that_a_killed_process_never_wrote_are_said(tmp_path):
    writer, _ = start(tmp_path, range(1, 5), 0.001)
    start(tmp_path, range(8, 10), 0.002, resume=(7, writer.run_id))
    [remark] = read_run(tmp_path).remarks
    assert remark == (
        "3 rows dropped after step 4: the process ended before the last steps were written"
    )


def test_training_again_with_one_monitor_is_a_start_of_its_own(tmp_path):
    writer = RecordWriter(tmp_path)
    for step in (1, 2, 3, 1, 2):
        writer.step(small_report(step, k3__mean=float(step)))
    assert writer.close(LONG)
    assert list(shown(tmp_path)) == [1, 2]
    assert [list(shown(path)) for path in earlier_in(tmp_path)] == [[1, 2, 3]]


def observed(monitor, step):
    generator = torch.Generator().manual_seed(step)
    q = -torch.rand(4, 16, generator=generator)
    monitor.observe(policy=q, ref=q + 0.1 * torch.randn(4, 16, generator=generator))
    return monitor.step(step)


def test_a_monitor_that_loads_a_state_continues_its_run(tmp_path):
    first = Monitor(tmp_path)
    for step in (1, 2, 3, 4):
        observed(first, step)
        if step == 2:
            state = json.loads(json.dumps(first.state_dict()))
    assert first.close().done
    second = Monitor(tmp_path)
    second.load_state_dict(state)
    assert second.state_dict()["run_id"] == state["run_id"] != ""
    observed(second, 3)
    done = second.close()
    assert done
    assert (done.errors, done.dropped, done.where) == (0, 0, str(tmp_path))
    assert (
        done.written
        == done.synced
        == max(
            json.loads(line)["seq"]
            for name in ("steps", "notes", "tokens")
            for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()
        )
    )
    assert [report.step for report in read_run(tmp_path).reports] == [1, 2, 3]
    third = Monitor(tmp_path)
    observed(third, 1)
    third.close()
    assert [report.step for report in read_run(tmp_path).reports] == [1]


# --- who writes there ----------------------------------------------------------------------------
OTHER = """
import sys
from klmonitor.record import RecordWriter
from tests.helpers.reports import small_report
writer = RecordWriter(sys.argv[1])
writer.step(small_report(1, k3__mean=7.0))
assert writer.flush(60)
print(writer.path, flush=True)
sys.stdin.readline()
"""


def other(path):
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(path)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return process, process.stdout.readline().strip()


def test_a_second_process_takes_a_directory_of_its_own_and_says_so(tmp_path, caplog):
    path = tmp_path / "run"
    process, where = other(path)
    with process:
        assert where == str(path)
        writer, own = start(path, range(1, 4), 0.5)
        assert writer.path == tmp_path / "run-2"
        assert f"this run's record is in {tmp_path / 'run-2'}" in caplog.text
        assert shown(path) == {1: 7.0}
        process.kill()
    assert shown(tmp_path / "run-2") == own
    writer, own = start(path, range(1, 4), 0.25)
    assert writer.path == path, "a lock of a process that died holds nobody up"
    assert shown(path) == own
    assert [shown(one) for one in earlier_in(path)] == [{1: 7.0}]


def test_many_processes_that_open_one_directory_all_succeed(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OTHER, str(tmp_path / "run")],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(6)
    ]  # fmt: skip
    where = {process.stdout.readline().strip() for process in processes}
    for process in processes:
        process.communicate("\n")
    assert all(process.returncode == 0 for process in processes)
    assert len(where) == 6
    assert all(shown(Path(path)) == {1: 7.0} for path in where)


def test_a_later_monitor_of_the_process_has_the_directory(tmp_path):
    first, one = start(tmp_path / "run", range(1, 4), 0.5, close=False)
    second, two = start(tmp_path / "run", range(1, 3), 0.25, close=False)
    first.step(small_report(4, k3__mean=4.5))
    for writer in (first, second):
        assert writer.close(LONG)
    assert (first.path, second.path) == (tmp_path / "run-2", tmp_path / "run")
    assert shown(tmp_path / "run") == two
    assert shown(tmp_path / "run" / "earlier" / "1") == one
    assert shown(tmp_path / "run-2") == {4: 4.5}


class Owner:
    def retire(self):
        pass


def test_without_locks_of_the_file_system_the_text_tells(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, check=True)  # fmt: skip
    for pid, host, age, free in (
        (int(dead.stdout), None, 0, True),
        (os.getppid(), None, 0, False),
        (1, "elsewhere", 0, False),
        (1, "elsewhere", 1000, True),
    ):
        path = tmp_path / f"{pid}-{age}"
        path.mkdir()
        text = {"pid": pid, "host": host or lock.socket.gethostname()}
        (path / ".lock").write_text(json.dumps(text))
        os.utime(path / ".lock", (time.time() - age,) * 2)
        owner = Owner()
        found, held = claim(path, owner)
        assert (found == path) == free
        held.release(owner)


def test_a_new_file_follows_no_link_and_meets_no_name(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    monkeypatch.setattr("secrets.token_hex", lambda _: "known")
    (tmp_path / ".x.known.part").symlink_to(victim)
    with pytest.raises(FileExistsError), replaced(tmp_path / "x"):
        pass
    assert victim.read_text() == "mine"


# --- what is lost is said ------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["removed", "moved away", "replaced", "one file"])
def test_a_directory_that_is_gone_is_noticed_said_and_made_again(tmp_path, how, caplog):
    path = tmp_path / "run"
    writer, _ = start(path, range(1, 5), 0.5, close=False)
    if how == "one file":
        (path / "steps.jsonl").unlink()
    else:
        path.rename(tmp_path / "away")
    if how == "replaced":
        start(tmp_path / "other", range(1, 3), 0.1)
        (tmp_path / "other").rename(path)
    for step in (5, 6):
        writer.step(small_report(step, k3__mean=0.5 + step))
    assert writer.close(LONG)
    record = read_run(path)
    assert [report.step for report in record.reports] == [5, 6]
    assert writer.errors == 0
    assert any("was removed or replaced" in remark for remark in record.remarks)
    assert "was removed or replaced" in caplog.text
    if how == "replaced":
        assert list(shown(path / "earlier" / "1")) == [1, 2]


def test_rows_that_could_not_be_written_are_said_in_a_row(tmp_path, monkeypatch):
    writer = RecordWriter(tmp_path)
    real, full = os.write, [True]

    def write(descriptor, data):
        if full[0]:
            raise OSError(28, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(jsonl.os, "write", write)
    for step in (1, 2, 3):
        writer.step(small_report(step))
    assert writer.flush(LONG)
    full[0] = False
    for step in (4, 5):
        writer.step(small_report(step))
    assert writer.close(LONG)
    record = read_run(tmp_path)
    assert [report.step for report in record.reports] == [4, 5]
    assert record.remarks == ("3 rows dropped: No space left on device",)
    assert record.missing == 0


def test_a_record_that_cannot_be_written_makes_klmonitor_inactive(tmp_path, monkeypatch):
    monitor = Monitor(tmp_path)
    observed(monitor, 1)
    monitor.flush()
    monkeypatch.setattr(jsonl.os, "write", lambda *_: 0)
    observed(monitor, 2)
    assert monitor.flush()
    report = observed(monitor, 3)
    assert report.run_values["klmonitor/active"] == 0
    assert report.run_values["klmonitor/errors"] > 0
    [alert] = [alert for alert in report.alerts if alert.kind == "inactive"]
    assert "cannot write what it finds" in alert.message
    monkeypatch.undo()
    monitor.flush()
    observed(monitor, 4)
    monitor.flush()
    assert observed(monitor, 5).run_values["klmonitor/active"] == 1
    monitor.close()


def test_too_many_rows_that_wait_are_said_in_a_row(tmp_path):
    writer = RecordWriter(tmp_path, capacity=4)
    import threading

    stop = threading.Event()
    writer._worker.submit(lambda: stop.wait(LONG), now=True)
    while not writer._worker._running:
        time.sleep(0.01)
    for step in range(10):
        writer.step(small_report(step))
        writer.note(Notice(step, "kept"))
    stop.set()
    assert writer.flush(LONG)
    writer.step(small_report(20))
    assert writer.close(LONG)
    record = read_run(tmp_path)
    assert len(record.notices) == 10 - max(0, 10 - 14)
    [remark] = record.remarks
    assert "too many were waiting" in remark
    assert f"{writer.dropped} rows dropped" in remark


def test_a_loss_of_power_takes_nothing_that_was_synced(tmp_path, monkeypatch):
    """What the disk holds is what was in each file when it was synced last."""
    monkeypatch.setattr(writer_module, "SYNC_SECONDS", 0.05)
    sizes = {}
    real = os.fsync

    def fsync(descriptor):
        real(descriptor)
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            sizes[status.st_ino] = status.st_size

    monkeypatch.setattr(jsonl.os, "fsync", fsync)
    writer = RecordWriter(tmp_path)
    for step in range(60):
        writer.step(small_report(step))
        writer.tokens(step, [make_token()])
        if step == 40:
            writer.checkpoint()
        time.sleep(0.003)
    assert writer.flush(LONG)
    synced = writer.flush(LONG).synced
    for path in tmp_path.glob("*.jsonl"):
        os.truncate(path, sizes.get(path.stat().st_ino, 0))
    rows = [
        json.loads(line)
        for path in tmp_path.glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert set(range(synced + 1)) <= {row["seq"] for row in rows}
    assert synced >= 2 * 40
    assert read_run(tmp_path).bad_lines == 0


def test_a_file_with_text_is_its_owners_alone_whatever_it_was(tmp_path):
    (tmp_path / "tokens.jsonl").write_text("")
    (tmp_path / "tokens.jsonl").chmod(0o644)
    writer = RecordWriter(tmp_path)
    writer.step(make_report(1))
    writer.tokens(1, [make_token(text="secret")])
    assert writer.close(LONG)
    assert stat.S_IMODE((tmp_path / "tokens.jsonl").stat().st_mode) == 0o600
    (tmp_path / "tokens.jsonl").unlink()
    victim = tmp_path / "victim"
    victim.write_text("")
    (tmp_path / "tokens.jsonl").symlink_to(victim)
    writer = RecordWriter(tmp_path)
    writer.resume(1)
    writer.tokens(2, [make_token(text="secret")])
    assert writer.close(LONG)
    assert victim.read_text() == ""
    assert writer.errors == 1
