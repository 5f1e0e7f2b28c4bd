"""The benchmark of the rules in small: fewer series, the same seeds at every run."""

import numpy as np
import pytest

from benchmarks import curves
from benchmarks import rules as bench
from klmonitor.testing import FAMILIES
from klmonitor.testing.curves import real_curve

EVENTS = ("spike x3", "spike x5", "step x2", "drift x2 in 200", "runaway x2 in 20")


def test_ordinary_runs_raise_few_alerts():
    pooled = bench.NONE_YET
    for family in bench.NULLS:
        found = bench.false_alarms(bench.Ours, bench.null_runs(family, 3, seed=70))
        assert found.rate() <= 15
        pooled += found
    assert pooled.steps == 30_000
    assert pooled.bound() <= 10


def test_start_up_ramps_raise_few_alerts():
    found = bench.false_alarms(bench.Ours, bench.null_runs("ramp", 40, seed=80, steps=150))
    assert found.early / found.runs <= 0.1


def test_events_are_found():
    found = bench.detections(bench.Ours, EVENTS, series=20, seed=90)
    share = {event: np.mean([hit is not None for hit in hits]) for event, hits in found.items()}
    at_once = {
        event: np.mean([hit is not None and hit[0] == 0 for hit in hits])
        for event, hits in found.items()
    }
    assert at_once["spike x3"] >= 0.9
    assert at_once["spike x5"] >= 0.95
    assert share["step x2"] >= 0.9
    assert share["drift x2 in 200"] >= 0.8
    assert share["runaway x2 in 20"] >= 0.95


@pytest.mark.parametrize(("factor", "at"), [(30, 30), (4, 60)])
def test_jumps_on_a_start_up_ramp_are_found(factor, at):
    share, before = bench.on_the_ramp(bench.Ours, factor, at, series=30, seed=60)
    assert share >= 0.9
    assert before <= 0.1


def test_the_series_are_what_they_say():
    flat = bench.kl_series("flat", steps=4000, seed=1)
    assert np.std(np.log(flat.k3)) == pytest.approx(0.13, abs=0.03)
    assert np.corrcoef(np.log(flat.k3[:-1]), np.log(flat.k3[1:]))[0, 1] == pytest.approx(
        0.5, abs=0.12
    )
    doubled = bench.kl_series("flat", "step x2", steps=4000, seed=1, at=1000)
    assert np.allclose(doubled.k3[:1000], flat.k3[:1000])
    assert np.allclose(doubled.k3[1000:], 2 * flat.k3[1000:])
    varying = bench.kl_series("varying", steps=4000, seed=1)
    assert np.std(np.log(varying.tokens)) == pytest.approx(1, abs=0.05)
    assert len(FAMILIES) == 7


def test_a_directory_of_curves_is_replayed_beside_its_labels(tmp_path, capsys):
    for seed in range(3):
        k3 = real_curve(100, seed)
        k3[70] *= 20 if seed == 0 else 1
        rows = [f"{step},{value!r}" for step, value in enumerate(k3.tolist())]
        (tmp_path / f"run{seed}.csv").write_text("\n".join(["step,kl", *rows]))
    labels = tmp_path / "labels.txt"
    labels.write_text("file,step,end,kind,reason\nrun0.csv,70,70,spike,one step\n")
    found = curves.load(tmp_path, labels)
    assert [list(curve.spikes()) for curve in found] == [[70], [], []]
    assert [curve.happened(70) for curve in found] == [True, False, False]
    bench.print_curves({"default": bench.Ours}, tmp_path, labels, runs=2)
    said = capsys.readouterr().out
    assert "3 curves, 300 steps, 1 spikes" in said
    assert "false {}; at the step: 1/1 of 8x 1/1 of 4x 1/1 of 3x" in said
    assert "x10 at 40 1.00" in said


def test_the_committed_labels_say_why_and_hold_no_series():
    rows = curves.LABELS.read_text(encoding="utf-8").splitlines()
    assert rows[0] == "file,step,end,kind,reason"
    assert all(row.split(",", 4)[3] in ("none", "spike", "drift", "norm") for row in rows[1:])
    assert all(len(row.split(",", 4)[4]) > 20 for row in rows[1:])
    assert len({row.split(",")[0] for row in rows[1:]}) == 36
