"""A dump with something wrong in it: one message with its place, and the rest is read."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from klmonitor.cli import main
from klmonitor.record import read_run

STEPS = 4


def row(at, sequence, **changed):
    rng = np.random.default_rng(100 * at + sequence)
    q = -rng.exponential(1.0, 6) - 0.01
    whole = {
        "step": at,
        "policy": q.tolist(),
        "ref": (q - 0.01).tolist(),
        "mask": [1] * 6,
        "tokens": [1, 2, 3, 4, 5, 6],
    }
    return {key: value for key, value in (whole | changed).items() if value is not None}


def rows():
    """Two sequences a step; the first of step 2 is on line 3."""
    return [row(step, sequence) for step in range(1, STEPS + 1) for sequence in range(2)]


def read(path, tmp_path, capsys, *options):
    """The status, the run's sequences by step, and what was said."""
    status = main(["read", str(path), "-o", str(tmp_path / "run"), "--quiet", *options])
    said = capsys.readouterr().err.splitlines()
    if status:
        return status, {}, said
    reports = read_run(tmp_path / "run").reports
    counts = {r.step: int(r.pairs["policy_ref"]["sequences"]) for r in reports}
    return status, counts, said


def dump(tmp_path, lines, name="a.jsonl"):
    path = tmp_path / name
    path.write_text(
        "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    )
    return path


WRONG = {
    "missing column": (
        {"ref": None},
        "has log-probs of policy alone, and a KL needs two policies; left out",
    ),
    "mixed lengths": ({"ref": [-1.0] * 5}, "mixed lengths: policy 6, ref 5; left out"),
    "mask of another length": ({"mask": [1] * 4}, "a mask of 4 values for 6 tokens; left out"),
    "ids of another length": ({"tokens": [1, 2]}, "mixed lengths: tokens 2, log-probs 6; left out"),
    "ids for log-probs": ({"ref": [4, 5, 6, 7, 8, 9]}, "ref holds whole numbers (token ids?)"),
    "text": ({"ref": ["a"] * 6}, "ref holds text, not numbers in nats; left out"),
    "a text": ({"ref": "not recorded"}, "ref holds text, not numbers in nats; left out"),
    "booleans": ({"ref": [True] * 6}, "ref holds true and false, not numbers in nats; left out"),
    "weights": ({"mask": [0.5] * 6}, "mask has values other than 0 and 1"),
    "uneven": ({"ref": [-1.0, [-1.0]]}, "ref is a list of uneven lists; left out"),
    "a fractional step": ({"step": 2.5}, "step is 2.5, not a whole number; left out"),
    "an object": ({"ref": {"a": 1}}, "ref holds object, not numbers in nats; left out"),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_wrong_row_is_named_and_left_out(name, tmp_path, capsys):
    changed, message = WRONG[name]
    lines = rows()
    lines[2] = row(2, 0, **changed)
    path = dump(tmp_path, lines)
    status, counts, said = read(path, tmp_path, capsys)
    assert status == 0
    assert counts == {1: 2, 2: 1, 3: 2, 4: 2}
    (line,) = said
    assert line.startswith(f"{path}:3: ")
    assert message in line


def test_a_torn_last_row(tmp_path, capsys):
    whole = json.dumps(row(STEPS, 1))
    path = dump(tmp_path, [*rows()[:-1], whole[: len(whole) // 2]])
    status, counts, said = read(path, tmp_path, capsys)
    assert (status, counts) == (0, {1: 2, 2: 2, 3: 2, 4: 1})
    assert said == [
        f"{path}:8: the last row is torn: it was still being written, or the writer was killed; "
        "left out"
    ]


def test_a_line_that_is_no_json(tmp_path, capsys):
    lines = [*rows()[:2], "INFO: checkpoint written\n", "[1, 2]\n", *rows()[2:]]
    path = dump(tmp_path, lines)
    status, counts, said = read(path, tmp_path, capsys)
    assert (status, counts) == (0, dict.fromkeys(range(1, 5), 2))
    assert said[0].startswith(f"{path}:3: is no JSON (")
    assert said[1] == f"{path}:4: is no JSON object; left out"


def test_nan_tokens_are_counted_and_the_others_read(tmp_path, capsys):
    lines = rows()
    bad = lines[2]["ref"]
    bad[1], bad[4] = float("nan"), None
    path = dump(tmp_path, lines)
    status, counts, said = read(path, tmp_path, capsys)
    assert (status, counts[2]) == (0, 2)
    assert said[0] == (
        f"{path}:3: ref has nan or infinite values: these tokens are counted and left out"
    )
    assert said[1] == "2 times: nan or infinite value of ref"
    pair = read_run(tmp_path / "run").reports[1].pairs["policy_ref"]
    assert (pair["nonfinite"], pair["tokens"]) == (2, 10)


def test_nan_where_no_token_counts_is_padding(tmp_path, capsys):
    lines = rows()
    lines[2] = row(2, 0, mask=[1, 1, 1, 1, 1, 0], ref=[-1.0] * 5 + [None])
    assert read(dump(tmp_path, lines), tmp_path, capsys)[2] == []


def test_many_of_a_kind_are_told_once_and_counted(tmp_path, capsys):
    lines = rows()
    for index in (2, 4, 6):
        lines[index] = {**lines[index], "ref": [-1.0]}
    path = dump(tmp_path, lines)
    _, counts, said = read(path, tmp_path, capsys)
    assert counts == {1: 2, 2: 1, 3: 1, 4: 1}
    assert said == [
        f"{path}:3: has sequences of mixed lengths: policy 6, ref 1; left out",
        "3 times: mixed lengths",
    ]


def test_a_step_that_comes_again_is_left_out(tmp_path, capsys):
    lines = [*rows(), row(2, 5)]
    path = dump(tmp_path, lines)
    _, counts, said = read(path, tmp_path, capsys)
    assert counts == dict.fromkeys(range(1, 5), 2)
    assert said == [
        f"{path}:9: step 2 comes again after step 4 has begun; left out: sort the rows by step"
    ]


def test_a_gzip_that_breaks_off(tmp_path, capsys):
    text = "".join(json.dumps(row(step, s)) + "\n" for step in range(1, 60) for s in range(2))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(text.encode())[:-1000])
    status, counts, said = read(path, tmp_path, capsys)
    assert status == 0
    assert len(counts) > 10
    (line,) = said
    assert "the file breaks off" in line


def test_one_file_of_several_is_damaged(tmp_path, capsys):
    for step in (1, 2, 3):
        np.savez(tmp_path / f"{step}.npz", policy=-np.ones((2, 3)), ref=-np.ones((2, 3)) - 0.1)
    (tmp_path / "2.npz").write_bytes(b"PK\x03\x04 damaged")
    status, counts, said = read(tmp_path, tmp_path, capsys)
    assert (status, counts) == (0, {1: 2, 3: 2})
    (line,) = said
    assert line.startswith(f"{tmp_path / '2.npz'}: cannot be read (")


def test_what_a_wrong_columns_name_says(tmp_path, capsys):
    path = dump(tmp_path, rows())
    status, _, said = read(path, tmp_path, capsys, "--ref", "reference")
    assert status == 2
    assert said == [
        "klmonitor read: there is no column 'reference' for ref, only 'mask', 'policy', 'ref', "
        "'step', 'tokens'"
    ]


def test_columns_that_nobody_knows(tmp_path, capsys):
    path = dump(tmp_path, [{"step": 1, "logp": [-1.0], "base": [-1.1]}])
    status, _, said = read(path, tmp_path, capsys)
    assert status == 2
    assert "none is known among 'base', 'logp', 'step': name them with --policy" in said[0]


def test_no_step_anywhere(tmp_path, capsys):
    path = dump(tmp_path, [row(1, 0, step=None)])
    status, _, said = read(path, tmp_path, capsys)
    assert status == 2
    assert said[0].startswith(f"{path}:1: has no step: name its column with --step")


def test_the_number_in_a_files_name_is_its_step(tmp_path, capsys):
    for step in (2, 10, 1):
        dump(tmp_path, [row(1, 0, step=None), row(1, 1, step=None)], f"rollout-{step}.jsonl")
    status, counts, said = read(tmp_path, tmp_path, capsys)
    assert (status, list(counts), said) == (0, [1, 2, 10], [])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing-here", "there is no dump"),
        ("empty.jsonl", "none of the files has a record"),
        ("notes.txt", "is of no format that is read"),
    ],
)
def test_nothing_readable_is_2(name, message, tmp_path, capsys):
    if "." in name:
        (tmp_path / name).write_text("")
    status, _, said = read(tmp_path / name, tmp_path, capsys)
    assert status == 2
    assert message in said[-1]
    assert not (tmp_path / "run").exists()


def test_a_wrong_parquet_type_is_named(tmp_path, capsys):
    parquet = pytest.importorskip("pyarrow.parquet")
    from pyarrow import Table

    lines = [one | {"ref": [1, 2, 3, 4, 5, 6]} for one in rows()]
    parquet.write_table(Table.from_pylist(lines), tmp_path / "a.parquet")
    status, _, said = read(tmp_path / "a.parquet", tmp_path, capsys)
    assert status == 2
    assert said[0] == (
        f"{tmp_path / 'a.parquet'}:1: ref holds whole numbers (token ids?), not numbers in nats; "
        "left out"
    )


def test_switched_off_it_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("KLMONITOR_DISABLE", "1")
    status, _, said = read(dump(tmp_path, rows()), tmp_path, capsys)
    assert status == 2
    assert "KLMONITOR_DISABLE is set" in said[-1]
