"""`klmonitor read`: what is read of any format is what a monitor would have seen live."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import torch

from klmonitor.cli import main
from klmonitor.record import read_run
from tests.helpers.dumps import differences, make_run, watch_live

POLICIES = ("policy", "ref", "old")


@pytest.fixture(scope="module")
def tokens():
    return list(make_run())


@pytest.fixture(scope="module")
def live(tokens, tmp_path_factory):
    return watch_live(tokens, tmp_path_factory.mktemp("live") / "run", POLICIES)


def row_of(one):
    return {
        "step": one.step,
        "prompt": one.prompt,
        "mask": one.mask.astype(int).tolist(),
        "tokens": one.ids.tolist(),
        **{name: one.log_probs[name].tolist() for name in POLICIES},
    }


def lines(tokens):
    return "".join(json.dumps(row_of(one)) + "\n" for one in tokens)


def stacked(some):
    """[B, T] arrays of one step."""
    return {
        "step": np.int64(some[0].step),
        "prompt": np.array([one.prompt for one in some]),
        "mask": np.stack([one.mask for one in some]),
        "tokens": np.stack([one.ids for one in some]),
        **{name: np.stack([one.log_probs[name] for one in some]) for name in POLICIES},
    }


def by_step(tokens):
    steps = sorted({one.step for one in tokens})
    return {step: [one for one in tokens if one.step == step] for step in steps}


def as_jsonl(tokens, directory):
    (directory / "dump.jsonl").write_text(lines(tokens))


def as_gzip(tokens, directory):
    (directory / "dump.jsonl.gz").write_bytes(gzip.compress(lines(tokens).encode()))


def as_zstd(tokens, directory):
    zstandard = pytest.importorskip("zstandard")
    (directory / "dump.jsonl.zst").write_bytes(zstandard.compress(lines(tokens).encode()))


def as_parquet(tokens, directory):
    parquet = pytest.importorskip("pyarrow.parquet")
    from pyarrow import Table

    parquet.write_table(Table.from_pylist([row_of(one) for one in tokens]), directory / "a.parquet")


def as_npz(tokens, directory):
    for step, some in by_step(tokens).items():
        np.savez(directory / f"step_{step}.npz", **stacked(some))


def as_safetensors(tokens, directory):
    save = pytest.importorskip("safetensors.numpy").save_file
    for step, some in by_step(tokens).items():
        save(
            {n: np.atleast_1d(v) for n, v in stacked(some).items()},
            directory / f"{step}.safetensors",
        )


def as_torch(tokens, directory):
    for step, some in by_step(tokens).items():
        columns = {n: torch.from_numpy(np.asarray(v)) for n, v in stacked(some).items()}
        torch.save(columns, directory / f"{step}.pt")


def as_packed(tokens, directory):
    """Packed tokens with cu_seqlens."""
    for step, some in by_step(tokens).items():
        columns = {n: v.ravel() if v.ndim == 2 else v for n, v in stacked(some).items()}
        ends = np.cumsum([0, *(len(one.ids) for one in some)])
        np.savez(directory / f"{step}.npz", cu_seqlens=ends, **columns)


WRITERS = (as_jsonl, as_gzip, as_zstd, as_parquet, as_npz, as_safetensors, as_torch, as_packed)


@pytest.mark.parametrize("write", WRITERS)
def test_what_is_read_equals_what_was_seen_live(write, tokens, live, tmp_path):
    dump = tmp_path / "dump"
    dump.mkdir()
    write(tokens, dump)
    assert main(["read", str(dump), "-o", str(tmp_path / "run"), "--quiet"]) == 0
    read = read_run(tmp_path / "run")
    assert differences(live, read) == []
    assert [(a.step, a.kind, a.severity, a.pair, a.kinds) for a in read.alerts] == [
        (a.step, a.kind, a.severity, a.pair, a.kinds) for a in live.alerts
    ]
    assert any(alert.step == 21 for alert in read.alerts), "the jump is found"
    last, same = live.reports[-1].pairs, read.reports[-1].pairs
    for name in last:
        assert same[name].verdict.estimator == last[name].verdict.estimator
        told = [[(t.log_ratio, t.token_id) for t in p.extremes] for p in (same[name], last[name])]
        assert told[0] == told[1]


def test_columns_are_named_by_the_user(tokens, live, tmp_path):
    names = {"policy": "lp", "ref": "base", "old": "before", "mask": "m", "tokens": "ids",
             "prompt": "uid", "step": "global_step"}  # fmt: skip
    rows = [{names.get(k, k): v for k, v in row_of(one).items()} for one in tokens]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [word for role, column in names.items() for word in (f"--{role}", column)]
    argv = ["analyze", str(tmp_path / "*.jsonl"), "-o", str(tmp_path / "run"), "--quiet"]
    assert main([*argv, *options]) == 0
    assert differences(live, read_run(tmp_path / "run")) == []


def test_groups_are_reported_apart(tokens, tmp_path):
    live = watch_live(tokens, tmp_path / "live", ("policy", "ref"), groups=["code", "math"])
    rows = [
        {k: v for k, v in row_of(one).items() if k != "old"} | {"group": one.group}
        for one in tokens
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["read", str(tmp_path / "a.jsonl"), "-o", str(tmp_path / "run"), "--quiet"]) == 0
    assert differences(live, read_run(tmp_path / "run")) == []
    assert "group/math/k3/mean" in read_run(tmp_path / "run").reports[0].pairs["policy_ref"].values


def test_files_of_ranks_are_one_run(tokens, live, tmp_path):
    """Each file holds all steps; sequences of one step lie in several."""
    for rank in range(3):
        mine = [one for index, one in enumerate(tokens) if index % 3 == rank]
        (tmp_path / f"rank_{rank}.jsonl").write_text(lines(mine))
    assert main(["read", str(tmp_path), "-o", str(tmp_path / "run"), "--quiet"]) == 0
    assert differences(live, read_run(tmp_path / "run")) == []


def test_float64_stays_what_it_is(tmp_path):
    """A ratio that float32 cannot hold: d = 1e-12 of log-probs near 1."""
    rows = [{"step": 1, "policy": [-1.0] * 8, "ref": [-1.0 + 1e-12] * 8} for _ in range(4)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["read", str(tmp_path / "a.jsonl"), "-o", str(tmp_path / "run"), "--quiet"]) == 0
    (report,) = read_run(tmp_path / "run").reports
    assert report.pairs["policy_ref"].k1.mean == pytest.approx(-1e-12, rel=1e-3)


def test_a_record_is_not_written_over(tokens, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text(lines(tokens[:16]))
    argv = ["read", str(tmp_path / "a.jsonl"), "-o", str(tmp_path / "run"), "--quiet"]
    assert main(argv) == 0
    before = (tmp_path / "run" / "steps.jsonl").read_bytes()
    assert main(argv) == 2
    assert "holds a record" in capsys.readouterr().err
    assert (tmp_path / "run" / "steps.jsonl").read_bytes() == before


def test_it_says_what_it_found(tokens, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text(lines(tokens))
    assert main(["read", str(tmp_path / "a.jsonl"), "-o", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "policy is policy, old is old, ref is ref; tokens count where mask" in said
    assert "30 steps (1 to 30)" in said
    assert "believe" in said
    assert f"klmonitor explain {tmp_path / 'run'}" in said


def test_many_steps_lose_no_row(tmp_path):
    """More steps than the record's queue holds rows, faster than any trainer makes them."""
    tokens = list(make_run(steps=300, sequences=2, length=4))
    (tmp_path / "a.jsonl").write_text(lines(tokens))
    assert main(["read", str(tmp_path / "a.jsonl"), "-o", str(tmp_path / "run"), "--quiet"]) == 0
    assert [r.step for r in read_run(tmp_path / "run").reports] == list(range(1, 301))
