"""`klmonitor export`: a table that holds every number, and is read back."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from pyarrow import parquet

from klmonitor.cli import main
from klmonitor.record import RecordWriter, read_run
from klmonitor.replay.curve import load_run
from tests.helpers.reports import make_report


@pytest.fixture
def run(tmp_path):
    """Twelve steps of two pairs, the second missing at times, and an evaluation."""
    writer = RecordWriter(tmp_path / "run", {})
    for step in range(1, 13):
        report = make_report(step, *(("policy_ref", "old_policy") if step % 3 else ("policy_ref",)))
        positive = {
            name: replace(p, values={k: abs(v) if "k3" in k else v for k, v in p.values.items()})
            for name, p in report.pairs.items()
        }
        writer.step(replace(report, pairs=positive))
        writer.flush()
    writer.step(replace(make_report(12), phase="eval"))
    writer.close()
    return tmp_path / "run"


def test_every_number_is_in_the_table(run, tmp_path, capsys):
    path = tmp_path / "run.parquet"
    assert main(["export", str(run), "--parquet", str(path)]) == 0
    assert "13 reports" in capsys.readouterr().out
    rows = parquet.read_table(path).to_pylist()
    reports = read_run(run).reports
    assert len(rows) == len(reports) == 13
    for row, report in zip(rows, reports, strict=True):
        known = {name: value for name, value in report.scalars().items() if not math.isnan(value)}
        held = {name: value for name, value in row.items() if value is not None}
        assert held == known | {
            "step": report.step,
            "first_step": report.first_step,
            "phase": report.phase,
            "time": report.time,
        }


def test_it_is_read_back_equal(run, tmp_path):
    path = tmp_path / "run.parquet"
    assert main(["export", str(run), "--parquet", str(path)]) == 0
    table, record = load_run(str(path)), load_run(str(run))
    assert [r.step for r in table.reports] == [r.step for r in record.reports]
    for one, other in zip(table.reports, record.reports, strict=True):
        assert {name: pair.values for name, pair in one.pairs.items()} == {
            name: pair.values for name, pair in other.pairs.items()
        }
    assert main(["backtest", str(path)]) == 0


def test_nothing_to_export(tmp_path, capsys):
    RecordWriter(tmp_path / "run", {}).close()
    assert main(["export", str(tmp_path / "run"), "--parquet", str(tmp_path / "a.parquet")]) == 2
    assert capsys.readouterr().err == "klmonitor export: no step is recorded yet\n"
    assert main(["export", str(tmp_path / "no"), "--parquet", str(tmp_path / "a.parquet")]) == 2


def test_a_damaged_table_is_one_line(tmp_path, capsys):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    assert main(["backtest", str(tmp_path / "a.parquet")]) == 2
    assert "cannot be read" in capsys.readouterr().err
