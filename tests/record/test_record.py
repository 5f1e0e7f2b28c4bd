import errno
import json
import math
import os
import random
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klmonitor.record import RecordWriter, jsonl, read_run
from klmonitor.record.jsonl import LineFile, LineReader
from klmonitor.record.rows import (
    LARGEST,
    alert_from_row,
    alert_to_row,
    coarsen,
    encode_report,
    encode_row,
    report_from_row,
    report_to_row,
    shorten,
    token_from_row,
    token_to_row,
)
from klmonitor.report import Alert, ExtremeToken, Report
from tests.helpers import reports as some
from tests.helpers.reports import make_alert, make_report, make_token, small_report
from tests.helpers.tornwrites import forbid_cutting, real_write, torn_writes
from tests.helpers.warnings import warnings_of

LONG = 60.0
"""Seconds: a wait that only a broken build uses up."""


def write(path: Path, *reports: Report, resume: int | None = None) -> RecordWriter:
    writer = RecordWriter(path)
    if resume is not None:
        writer.resume(resume)
    for report in reports:
        writer.step(report)
    assert writer.close(LONG)
    return writer


def steps_of(path: Path) -> list[int]:
    return [report.step for report in read_run(path).reports]


# --- what is written is what is read ---------------------------------------------------------
def plain_text(value: object) -> object:
    """Two surrogates in a row are one character once they were JSON."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    if isinstance(value, dict):
        return {plain_text(key): plain_text(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_text(item) for item in value]
    if isinstance(value, float):
        return "nan" if math.isnan(value) else max(min(value, LARGEST), -LARGEST)
    return value


def through_a_line(row: dict[str, object]) -> dict[str, object]:
    line = encode_row(row)
    assert line.count(b"\n") == 1
    assert line.isascii()
    found: dict[str, object] = json.loads(line, parse_constant=pytest.fail)
    return found


@given(some.tokens)
def test_a_token_comes_back(token: ExtremeToken) -> None:
    found = token_from_row(through_a_line(token_to_row(token)))
    assert plain_text(vars(found)) == plain_text(vars(token))


@given(some.alerts)
def test_an_alert_comes_back_without_text(alert: Alert) -> None:
    found = alert_from_row(through_a_line(alert_to_row(alert)))
    assert all(token.text is None for token in found.tokens)
    silent = replace(alert, tokens=tuple(replace(t, text=None) for t in alert.tokens))
    for name, value in vars(silent).items():
        mine = getattr(found, name)
        if name == "tokens":
            value, mine = [vars(t) for t in value], [vars(t) for t in mine]
        assert plain_text(mine) == plain_text(value)


@given(some.reports())
def test_a_report_comes_back_exactly_but_for_short_histograms(report: Report) -> None:
    found = report_from_row(through_a_line(report_to_row(report)))
    fields = ("step", "first_step", "phase", "time")
    assert [getattr(found, f) for f in fields] == [getattr(report, f) for f in fields]
    assert plain_text(found.run_values) == plain_text(report.run_values)
    assert plain_text(list(found.pairs)) == plain_text(list(report.pairs))
    for mine, theirs in zip(found.pairs.values(), report.pairs.values(), strict=True):
        counted = {k: v for k, v in theirs.values.items() if not math.isnan(v)}
        assert plain_text(mine.values) == plain_text(counted)
        assert [n for _, n in mine.histogram] == [n for _, n in theirs.histogram]
        for (short, _), (edge, _) in zip(mine.histogram, theirs.histogram, strict=True):
            assert short == pytest.approx(edge, rel=0.005, abs=1e-300)
            assert math.copysign(1, short) == math.copysign(1, edge)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_scalars_are_exact_to_the_last_bit(value: float) -> None:
    found = report_from_row(through_a_line(report_to_row(small_report(1, x=value))))
    assert found.pairs["policy_ref"]["x"].hex() == value.hex()


def test_the_directory_holds_everything_and_token_text_is_private(tmp_path: Path) -> None:
    token, text = make_token(), make_token(1, text="naïve \ud800\n")
    alert = make_alert(2, tokens=(text,))
    umask = os.umask(0)
    try:
        writer = RecordWriter(tmp_path / "a" / "b", {"pairs": ["policy_ref"], "path": Path("x")})
        for step in (1, 2):
            writer.step(make_report(step, "policy_ref", "old_policy"))
        writer.tokens(2, [token, text])
        writer.tokens(2, [text], phase="eval")
        writer.alert(alert)
        writer.alert(replace(alert, phase="end", step=3))
        assert writer.close(LONG)
    finally:
        os.umask(umask)
    assert (writer.written, writer.errors, writer.dropped) == (2, 0, 0)
    assert {p.name for p in writer.path.iterdir()} == {
        ".lock",
        "run.json",
        "steps.jsonl",
        "tokens.jsonl",
        "alerts.jsonl",
    }
    assert stat.S_IMODE((writer.path / "tokens.jsonl").stat().st_mode) == 0o600
    assert stat.S_IMODE((writer.path / "steps.jsonl").stat().st_mode) == 0o666

    run = read_run(writer.path)
    assert run.meta == {"pairs": ["policy_ref"], "path": "x"}
    assert [set(start) for start in run.starts] == [{"time", "versions"}]
    assert [report.step for report in run.reports] == [1, 2]
    assert run.reports[1].scalars() == make_report(2, "policy_ref", "old_policy").scalars()
    assert run.tokens == {2: [token, text]}
    assert [(a.step, a.phase) for a in run.alerts] == [(2, "open"), (3, "end")]
    assert run.bad_lines == 0


def test_reports_come_with_their_alerts_and_with_tokens_that_have_no_text(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path)
    for phase in ("train", "eval"):
        writer.step(replace(make_report(5, "policy_ref", "old_policy"), phase=phase))
        writer.tokens(5, [make_token(text=phase)], phase)
    writer.alert(make_alert(5))
    writer.alert(make_alert(5, phase="end", kind="shift"))
    writer.close(LONG)
    train, evaluation = read_run(tmp_path).reports
    assert train.extremes == evaluation.extremes == [make_token()]
    assert train.pairs["old_policy"].extremes == ()
    assert [alert.kind for alert in train.alerts] == ["spike"]
    assert evaluation.alerts == ()


# --- size ------------------------------------------------------------------------------------
@pytest.mark.parametrize("names", [("policy_ref",), ("policy_ref", "old_policy", "rollout_old")])
def test_a_full_row_takes_4_kb_a_pair(names: tuple[str, ...]) -> None:
    for step in range(20):
        report = make_report(step, *names)
        assert len(report.pairs[names[0]].values) >= 80
        line = encode_report(report)
        assert len(line) <= 4096 * len(names)
        found = report_from_row(json.loads(line))
        for name, pair in report.pairs.items():
            assert found.pairs[name].values == pair.values
            assert sum(n for _, n in found.pairs[name].histogram) == sum(
                n for _, n in pair.histogram
            )


def test_a_typical_row_keeps_all_its_buckets() -> None:
    """Two mantissa bits, 80 buckets, a group and other: nothing has to be merged."""
    report = make_report(1)
    full = report.pairs["policy_ref"]
    pair = replace(
        full,
        values={
            name: x
            for name, x in full.values.items()
            if not name.startswith(("group/code/", "penalty/"))
        },
        histogram=full.histogram[20:100],
    )
    found = report_from_row(json.loads(encode_report(replace(report, pairs={pair.name: pair}))))
    edges = [edge for edge, _ in found.pairs["policy_ref"].histogram]
    assert edges == [shorten(edge) for edge, _ in pair.histogram]


def test_scalars_beyond_the_budget_are_kept_and_the_histogram_goes() -> None:
    report = make_report(1)
    pair = report.pairs["policy_ref"]
    many = {f"group/{i}/k1/mean": math.pi * i for i in range(200)}
    crowded = replace(report, pairs={pair.name: replace(pair, values=many)})
    found = report_from_row(json.loads(encode_report(crowded))).pairs["policy_ref"]
    assert found.values == many
    assert found.histogram == ()


@given(st.integers(0, 3), st.integers(0, 2**32))
def test_coarser_buckets_hold_the_same_counts(bits: int, seed: int) -> None:
    """A bucket's count is that of the finer buckets whose edge lies in it, on its side of 0."""
    rng = random.Random(seed)
    fine = sorted(
        {
            rng.choice((-1, 1)) * 2.0 ** rng.randint(-8, 3) * (1 + rng.randrange(16) / 16)
            for _ in range(40)
        }
    )
    histogram = ((-0.0, 3.0), (0.0, 5.0), *((edge, float(rng.randint(1, 9))) for edge in fine))
    histogram = tuple(sorted(histogram, key=lambda b: (b[0], math.copysign(1, b[0]))))
    coarse = coarsen(histogram, bits)
    for edge, count in coarse:
        width = 2.0 ** (math.frexp(edge)[1] - 1 - bits) if edge else 0.0
        inside = [
            n
            for other, n in histogram
            if math.copysign(1, other) == math.copysign(1, edge)
            and (abs(edge) <= abs(other) < abs(edge) + width if edge else other == 0)
        ]
        assert count == sum(inside)
    assert sum(n for _, n in coarse) == sum(n for _, n in histogram)
    assert [edge for edge, _ in coarse] == sorted(edge for edge, _ in coarse)
    assert coarsen(histogram, None) == histogram


def test_numbers_of_numpy_are_stored_as_numbers() -> None:
    import numpy as np

    row = {"step": np.int64(3), "value": np.float32(0.5)}
    assert encode_row(row) == b'{"step":3,"value":0.5}\n'
    with pytest.raises(TypeError, match="complex"):
        encode_row({"value": 1j})


def test_at_the_limit_old_steps_are_thinned_and_alerts_stay(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path, max_bytes=200_000)
    for step in range(400):
        writer.step(make_report(step))
        writer.tokens(step, [make_token()] * 4)
        if step % 50 == 7:
            writer.alert(make_alert(step))
        if step % 100 == 0:
            assert writer.flush(LONG)
            assert sum(p.stat().st_size for p in tmp_path.glob("*.jsonl")) <= 200_000
    assert writer.close(LONG)
    assert (writer.errors, writer.dropped) == (0, 0)
    run = read_run(tmp_path)
    steps = [report.step for report in run.reports]
    alerted = list(range(7, 400, 50))
    assert [alert.step for alert in run.alerts] == alerted
    assert set(alerted) <= set(steps), "what an alert was raised on can be looked at"
    assert steps[-6:] == list(range(394, 400)), "the newest are whole"
    old = [step for step in steps if step < 200 and step not in alerted]
    stride = old[1] - old[0]
    assert stride in (2, 4, 8, 16, 32, 64)
    assert old == list(range(0, old[-1] + 1, stride)), "older ones are spread evenly"
    assert run.exact_until == 1
    assert run.missing == run.bad_lines == 0
    [remark] = run.remarks
    assert "not exact from step 1" in remark
    assert "max_disk" in remark
    for report in run.reports:
        assert report.scalars() == make_report(report.step).scalars()


# --- setup fails loudly ----------------------------------------------------------------------
def test_a_file_in_the_way_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    for path in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(OSError, match="choose another run_dir") as caught:
            RecordWriter(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.fixture
def not_root() -> Iterator[None]:
    if os.geteuid() == 0:
        os.seteuid(65534)
        yield
        os.seteuid(0)
    else:
        yield


def test_a_directory_without_permission_is_named_with_the_remedy(
    tmp_path: Path, not_root: None
) -> None:
    if os.getuid() != 0:
        tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="Permission denied; choose another run_dir"):
        RecordWriter(tmp_path / "run")


def test_a_row_file_without_permission_fails_at_setup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, small_report(1))
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "steps.jsonl")
    with pytest.raises(OSError, match=r"steps\.jsonl may not be written; choose another run_dir"):
        RecordWriter(tmp_path)


def test_reading_what_is_no_record_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected run\.json or steps\.jsonl"):
        read_run(tmp_path)


# --- resuming and torn files -----------------------------------------------------------------
def test_a_resumed_run_appends_and_notes_every_start(tmp_path: Path) -> None:
    write(tmp_path, *(small_report(step, x=1.0) for step in (1, 2, 3)))
    write(tmp_path, *(small_report(step, x=2.0) for step in (3, 4)), resume=2)
    run = read_run(tmp_path)
    assert [(r.step, r.pairs["policy_ref"]["x"]) for r in run.reports] == [
        (1, 1.0),
        (2, 1.0),
        (3, 2.0),
        (4, 2.0),
    ]
    first, second = run.starts
    assert first["time"] <= second["time"]
    assert second["versions"]["python"].count(".") == 2
    assert second["versions"]["klmonitor"]
    assert not list(tmp_path.glob("*.new"))


def test_the_later_tokens_and_alerts_of_a_step_win(tmp_path: Path) -> None:
    for position, message in ((1, "first"), (2, "second")):
        writer = RecordWriter(tmp_path)
        writer.resume(8)
        writer.tokens(9, [make_token(position)])
        writer.alert(make_alert(9, message=message))
        writer.alert(make_alert(9, message=message, phase="end"))
        assert writer.close(LONG)
    run = read_run(tmp_path)
    assert run.tokens == {9: [make_token(2)]}
    assert [(a.message, a.phase) for a in run.alerts] == [("second", "open"), ("second", "end")]


def test_evaluation_and_training_of_one_step_are_both_kept(tmp_path: Path) -> None:
    write(tmp_path, small_report(2), small_report(4), small_report(4, phase="eval"))
    assert [(r.step, r.phase) for r in read_run(tmp_path).reports] == [
        (2, "train"),
        (4, "train"),
        (4, "eval"),
    ]


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_torn_last_line_is_skipped_and_healed_by_a_resumed_run(tmp_path: Path, cut: int) -> None:
    write(tmp_path, *(small_report(step) for step in (1, 2, 3)))
    path = tmp_path / "steps.jsonl"
    os.truncate(path, path.stat().st_size - cut)
    run = read_run(tmp_path)
    assert [report.step for report in run.reports] == [1, 2]
    assert run.bad_lines == 0
    write(tmp_path, small_report(4), resume=3)
    run = read_run(tmp_path)
    expected = [1, 2, 3, 4] if cut == 1 else [1, 2, 4]  # cut by 1, only the newline was missing
    assert [report.step for report in run.reports] == expected
    assert run.bad_lines == (cut != 1)


def test_lines_that_make_no_sense_are_counted(tmp_path: Path) -> None:
    write(tmp_path, small_report(1))
    bad = (
        b"\x00\x00\xff",
        b"[]",
        b"3",
        b"{}",
        b'{"step":"x","first_step":1,"pairs":{}}',
        b'{"step":1,"first_step":1,"pairs":{"a":{"values":{"m":"x"}}}}',
        b'{"step":1,"first_step":1,"pairs":{"a":{"values":{},"histogram":{"edges":[1],"counts":[]}}}}',
        b"[" * 100_000,
    )
    with (tmp_path / "steps.jsonl").open("ab") as file:
        file.write(b"\n".join(bad) + b"\n\n")
    (tmp_path / "tokens.jsonl").write_bytes(b'{"step":1,"tokens":[{"pear":1}]}\n')
    (tmp_path / "alerts.jsonl").write_bytes(b'{"step":1,"pear":1}\n')
    write(tmp_path, small_report(2), resume=1)
    run = read_run(tmp_path)
    assert [report.step for report in run.reports] == [1, 2]
    assert run.bad_lines == len(bad) + 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00"])
def test_an_unreadable_run_file_does_not_stop_a_run(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    assert read_run(tmp_path).meta == {}
    write(tmp_path, small_report(1))
    assert len(read_run(tmp_path).starts) == 1


# --- disks that fail -------------------------------------------------------------------------
Write = Callable[[int, bytes], int]


@pytest.fixture
def os_write(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Write], None]]:
    """Replace `os.write` as the record sees it."""
    with monkeypatch.context() as patch:
        yield lambda fake: patch.setattr(jsonl.os, "write", fake)


def test_short_writes_are_completed(tmp_path: Path, os_write: Callable[[Write], None]) -> None:
    os_write(lambda fd, data: real_write(fd, data[:7]))
    writer = write(tmp_path, *(small_report(step) for step in range(5)))
    assert (writer.errors, writer.written) == (0, 4)
    assert steps_of(tmp_path) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("can_cut", [True, False])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.ESTALE, 0])
def test_a_failed_write_loses_its_own_row_only(
    tmp_path: Path,
    os_write: Callable[[Write], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int,
    can_cut: bool,
) -> None:
    os_write(torn_writes(code))
    if not can_cut:
        forbid_cutting(monkeypatch)
    writer = RecordWriter(tmp_path)
    for step in range(5):
        writer.step(small_report(step))
        assert writer.flush(LONG)
        assert writer.written == (step if step not in (1, 2) else 0)
    assert writer.close(LONG)
    assert writer.errors == 2
    run = read_run(tmp_path)
    assert [report.step for report in run.reports] == [0, 3, 4]
    assert run.bad_lines == (0 if can_cut else 2)
    [message] = warnings_of(caplog)
    assert "steps.jsonl" in message
    assert os.strerror(code or errno.EIO) in message or not code


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_device_costs_its_own_rows_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "steps.jsonl").symlink_to("/dev/full")
    writer = RecordWriter(tmp_path)
    for step in range(20):
        writer.step(small_report(step))
        writer.alert(make_alert(step))
    assert writer.close(LONG)
    assert (writer.errors, writer.dropped, writer.written) == (20, 0, None)
    assert len((tmp_path / "alerts.jsonl").read_text().splitlines()) == 20
    [message] = warnings_of(caplog)
    assert os.strerror(errno.ENOSPC) in message


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("may not mount a file system")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk_is_survived_and_used_again_once_it_has_room(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * 30_000)
    writer = RecordWriter(small_disk)
    for step in range(30):
        writer.step(make_report(step))
    assert writer.flush(LONG)
    kept = steps_of(small_disk)
    assert 0 < len(kept) == 30 - writer.errors < 30
    assert (small_disk / "steps.jsonl").read_bytes().endswith(b"}\n")
    ballast.unlink()
    writer.step(make_report(30))
    assert writer.close(LONG)
    assert steps_of(small_disk) == [*kept, 30]
    assert writer.written == 30
    assert len(warnings_of(caplog)) == 1


def test_rows_before_a_file_size_limit_stay_whole(tmp_path: Path) -> None:
    """The kernel takes part of the row that crosses the limit; the rest fails with EFBIG."""
    run_script(
        """
        import logging, resource, sys
        from klmonitor.record import RecordWriter
        from tests.helpers.reports import make_report
        logging.disable()
        writer = RecordWriter(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        for step in range(8):
            writer.step(make_report(step))
        assert writer.flush(60)
        assert (writer.errors, writer.written) == (6, 1), (writer.errors, writer.written)
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, resource.RLIM_INFINITY))
        writer.step(make_report(8))
        assert writer.close(60)
        """,
        tmp_path,
    )
    assert steps_of(tmp_path) == [0, 1, 8]
    assert read_run(tmp_path).bad_lines == 0


def test_a_stalled_disk_stalls_neither_step_nor_close(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A FIFO that nobody reads blocks whoever opens it, for ever."""
    os.mkfifo(tmp_path / "steps.jsonl")
    writer = RecordWriter(tmp_path, capacity=8)
    for step in range(100):
        writer.step(small_report(step))
    assert not writer.flush(0.01)
    assert not writer.close(0.05)
    assert not writer.close(0.05)
    assert writer.written is None
    assert 99 <= writer.dropped <= 100
    [message] = warnings_of(caplog)
    assert str(tmp_path) in message
    unblock(tmp_path / "steps.jsonl")


def unblock(fifo: Path) -> None:
    """Let a writer that waits for a reader go on."""
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    threading.Timer(0.1, os.close, [reader]).start()


def test_a_row_that_cannot_be_encoded_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = replace(small_report(1), step=1j)
    writer = write(tmp_path, bad, bad, small_report(2))
    assert (writer.errors, writer.written) == (2, 2)
    assert len(warnings_of(caplog)) == 1


def test_a_writer_that_was_closed_takes_nothing_and_raises_nothing(tmp_path: Path) -> None:
    writer = write(tmp_path, small_report(1))
    writer.step(small_report(2))
    writer.tokens(2, [make_token()])
    writer.alert(make_alert(2))
    assert writer.close(LONG)
    assert writer.dropped == 3
    assert steps_of(tmp_path) == [1]


# --- crashes and concurrent readers ----------------------------------------------------------
def run_script(body: str, *args: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(body), *map(str, args)],
        cwd=Path(__file__).parents[2],
        timeout=120,
        check=True,
    )


def test_kill_9_loses_no_acknowledged_row(tmp_path: Path) -> None:
    body = """
        import sys
        from klmonitor.record import RecordWriter
        from tests.helpers.reports import make_alert, make_report, make_token
        writer = RecordWriter(sys.argv[1])
        step, told = 0, None
        reports = [make_report(i, "policy_ref", "old_policy") for i in range(50)]
        from dataclasses import replace
        while True:
            writer.step(replace(reports[step % 50], step=step))
            writer.tokens(step, [make_token()] * 16)
            if writer.written != told:
                told = writer.written
                print(told, flush=True)
            step += 1
            if step % 5 == 0:
                writer.flush(60)
        """
    for round_ in range(3):
        path = tmp_path / str(round_)
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(body), str(path)],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            told = [process.stdout.readline() for _ in range(8 + 5 * round_)]
            process.kill()
            told += process.stdout.readlines()
        acknowledged = [int(line) for line in told if line.endswith(b"\n")][-1]
        run = read_run(path)
        found = [report.step for report in run.reports]
        assert found == list(range(len(found)))
        assert acknowledged >= 5
        assert len(found) > acknowledged
        assert run.bad_lines == 0
        write(path, small_report(10**6), resume=found[-1])
        assert steps_of(path) == [*found, 10**6]


def test_rows_are_written_at_exit_without_a_close(tmp_path: Path) -> None:
    run_script(
        """
        import sys
        from klmonitor.record import RecordWriter
        from tests.helpers.reports import make_report
        writer = RecordWriter(sys.argv[1])
        for step in range(50):
            writer.step(make_report(step))
        """,
        tmp_path,
    )
    assert steps_of(tmp_path) == list(range(50))


def test_a_concurrent_reader_sees_whole_rows_only(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path, capacity=1000)
    path = tmp_path / "steps.jsonl"
    tail, seen = LineReader(path, report_from_row), []
    for step in range(150):
        writer.step(make_report(step))
        if step % 10 == 0:
            run = read_run(tmp_path)
            assert run.bad_lines == 0
            assert [r.step for r in run.reports] == list(range(len(run.reports)))
            seen += [report.step for report in tail.poll()]
    assert writer.close(LONG)
    seen += [report.step for report in tail.poll()]
    assert seen == list(range(150))
    assert tail.bad_lines == 0
    assert list(tail.poll()) == []


def test_a_reader_waits_for_the_rest_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    reader = LineReader(path, lambda row: row["a"])
    assert list(reader.poll()) == []
    path.write_bytes(b'{"a":1}\n{"a":')
    assert list(reader.poll()) == [1]
    with path.open("ab") as file:
        file.write(b'2}\nnonsense\n{"a":3}\n')
    assert list(reader.poll()) == [2, 3]
    assert reader.bad_lines == 1


def test_a_line_file_that_is_removed_is_made_again_when_an_error_closed_it(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "x.jsonl")
    file.append(b"1\n")
    file.close()
    file.path.unlink()
    file.append(b"2\n")
    file.close()
    assert file.path.read_bytes() == b"2\n"


def test_the_record_and_the_sinks_import_nothing_heavy() -> None:
    run_script(
        """
        import sys
        import klmonitor.record, klmonitor.sinks
        import klmonitor.sinks.console, klmonitor.sinks.tensorboard, klmonitor.sinks.wandb
        heavy = {"torch", "wandb", "tensorboard", "rich", "transformers"} & set(sys.modules)
        assert not heavy, heavy
        """
    )
