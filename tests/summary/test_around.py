"""What stood around the extreme tokens: equal to a direct look into the batches."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from klmonitor import Collector, Monitor
from klmonitor.hooks.text import TokenText
from klmonitor.monitor import beside, core
from klmonitor.numbers.neighbours import Surroundings, neighbours_of
from klmonitor.pairs import PAIR_INDEX
from klmonitor.record import read_run
from klmonitor.record.around import AROUND, AROUND_BYTES
from klmonitor.summary import around
from klmonitor.summary.intake import Intake
from klmonitor.summary.parts import SECTIONS, MergedParts, pack, unpack
from klmonitor.summary.state import merge_all
from tests.helpers.ranks import run_ranks

ALERTING = {"limit": {"policy_ref": 1e-9, "rollout_policy": 1e-9}}
REACH = 16
LAYOUTS = ("rows", "packed", "list", "sliced", "numpy", "float64", "nothing known")


def ragged(seed, layout="rows", sequences=3, longest=40):
    """One micro-batch as `observe` takes it, and its sequences of (q, p, id); None: masked."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, sequences)
    width = int(lengths.max())
    q = -rng.exponential(1.0, (sequences, width)).astype(np.float32)
    p = np.minimum(q + rng.normal(0, 1, q.shape).astype(np.float32), np.float32(-1e-4))
    ids = rng.integers(0, 150_000, q.shape)
    mask = (np.arange(width) < lengths[:, None]) & (rng.random(q.shape) < 0.9)
    if layout in ("packed", "list"):
        rows = [
            [(q[i, t], p[i, t], ids[i, t]) if mask[i, t] else None for t in range(lengths[i])]
            for i in range(sequences)
        ]
    else:
        rows = [
            [(q[i, t], p[i, t], ids[i, t]) if mask[i, t] else None for t in range(width)]
            for i in range(sequences)
        ]
    given = {"policy": q, "ref": p, "mask": mask, "token_ids": ids}
    if layout == "numpy":
        return given, rows
    given = {name: torch.from_numpy(x) for name, x in given.items()}
    if layout in ("packed", "list"):
        given = {name: [x[i, :n] for i, n in enumerate(lengths)] for name, x in given.items()}
        if layout == "packed":
            given = {name: torch.cat(x) for name, x in given.items()}
            given["cu_seqlens"] = torch.tensor([0, *np.cumsum(lengths)])
        else:
            given["mask"] = torch.cat(given["mask"])
            given["token_ids"] = torch.cat(given["token_ids"])
    if layout == "sliced":
        given = {name: torch.cat([x, x[:, :5]], 1)[:, :width] for name, x in given.items()}
    if layout == "float64":
        given |= {name: given[name].double() for name in ("policy", "ref")}
    if layout == "nothing known":
        del given["token_ids"]
        rows = [[None if one is None else (*one[:2], None) for one in row] for row in rows]
    return given, rows


def looked_up(token, rows):
    """First place, ids, log q, log p around a token, by looking into its batch."""
    row = rows[token.sequence]
    places = range(token.position - REACH, token.position + REACH + 1)
    there = [row[t] if 0 <= t < len(row) else None for t in places]
    kept = [i for i, one in enumerate(there) if one is not None]
    cut = there[kept[0] : kept[-1] + 1]
    columns = [[None if one is None else one[k] for one in cut] for k in (2, 0, 1)]
    return kept[0] - REACH, *columns


def assert_equal(report, tensor, batches, pair="policy_ref", known=None):
    """Every extreme token's neighbours are those that its batch has."""
    tails = neighbours_of(report.pairs[pair].extremes, tensor.numpy()[PAIR_INDEX[pair]])
    found = [one for tail in tails for one in tail]
    expected = len(report.pairs[pair].extremes) if known is None else known
    assert len(found) == expected
    for one in found:
        who = one.token.worker or one.token.rank
        first, ids, q, p = looked_up(one.token, batches[who, one.token.micro_batch])
        assert one.first == first
        assert list(one.ids) == ids
        for mine, theirs in ((one.log_q, q), (one.log_p, p)):
            assert [None if x is None else np.float32(x) for x in mine] == theirs


class Seen(Monitor):
    """A monitor that keeps what stood around the extreme tokens of its last step."""

    def _report(self, pending):
        self.beside = pending.summary.around.tensor
        return super()._report(pending)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    layouts=st.lists(st.sampled_from(LAYOUTS), min_size=1, max_size=5),
    held=st.sampled_from((around.MOST_HELD, 150, 0)),
    copied=st.sampled_from((around.MOST_COPIED, 0)),
)
def test_neighbours_are_those_of_the_batch_after_any_micro_batches(seed, layouts, held, copied):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(around, "MOST_HELD", held)
        patch.setattr(around, "MOST_COPIED", copied)
        monitor, batches = Seen(strict=True), {}
        for number, layout in enumerate(layouts):
            given_, batches[0, number] = ragged(seed + number, layout)
            monitor.observe(**given_)
        report = monitor.step(0)
    assert_equal(report, monitor.beside, batches)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("layouts", [("rows",) * 4, ("packed", "rows", "rows", "list")])
def test_neighbours_on_a_gpu_are_those_of_the_batch(layouts):
    monitor, batches = Seen(strict=True), {}
    for number, layout in enumerate(layouts):
        given_, batches[0, number] = ragged(number, layout)
        there = {
            name: [one.cuda() for one in x] if isinstance(x, list) else x.cuda()
            for name, x in given_.items()
        }
        monitor.observe(**there)
    report = monitor.step(0)
    assert_equal(report, monitor.beside.cpu(), batches)


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), workers=st.integers(1, 3), own=st.booleans())
def test_neighbours_come_with_parts(seed, workers, own):
    driver, batches = Seen(strict=True), {}
    for worker in range(workers):
        collector = Collector(f"w{worker}")
        for number in range(2):
            given_, rows = ragged(seed + 10 * worker + number)
            batches[f"w{worker}", number] = rows
            collector.observe(**given_)
        driver.add_part(collector.take())
    if own:
        given_, batches[0, 0] = ragged(seed + 77, "packed")
        driver.observe(**given_)
    assert_equal(driver.step(0), driver.beside, batches)


def of_rank(rank, world):
    monitor, batches = Seen(strict=True), {}
    for number in range(3):
        given_, batches[rank, number] = ragged(100 * rank + number)
        if rank < world - 1:  # one rank has nothing
            monitor.observe(**given_)
    report = monitor.step(0)
    tokens = list(report.pairs["policy_ref"].extremes)
    tails = neighbours_of(tokens, monitor.beside.numpy()[PAIR_INDEX["policy_ref"]])
    return [one for tail in tails for one in tail], batches


def test_every_rank_has_the_neighbours_of_all():
    found = run_ranks(3, of_rank)
    batches = {key: rows for _, own in found for key, rows in own.items()}
    assert {one.token.rank for one in found[0][0]} == {0, 1}
    for mine, _ in found:
        assert mine == found[0][0]
        assert len(mine) == 32
    for one in found[0][0]:
        first, ids, q, p = looked_up(one.token, batches[one.token.rank, one.token.micro_batch])
        assert (one.first, list(one.ids)) == (first, ids)
        assert [None if x is None else np.float32(x) for x in one.log_q] == q
        assert [None if x is None else np.float32(x) for x in one.log_p] == p


def test_merged_summaries_keep_the_neighbours_of_the_tokens_that_they_keep():
    summaries, batches = [], {}
    for rank in range(3):
        intake = Intake()
        given_, batches[rank, 0] = ragged(rank)
        log_probs = {name: given_.pop(name) for name in ("policy", "ref")}
        intake.add(log_probs, given_, None, None, "train", rank)
        summaries.append(intake.take("train"))
    both = merge_all([merge_all(summaries[:2]), summaries[2]])
    other = merge_all([summaries[2], summaries[1], summaries[0]])
    assert torch.equal(both.around.tensor, other.around.tensor)
    index = PAIR_INDEX["policy_ref"]
    for tail in range(2):
        for slot, row in enumerate(both.tokens[index, tail].tolist()):
            values = both.around.tensor[index, tail, slot]
            assert values[0, REACH] == np.float32(row[5])
            assert values[1, REACH] == np.float32(row[6])
            assert values[2, REACH] == row[7] + 2


def test_the_section_has_a_fixed_size_and_may_be_absent():
    assert 4 * np.prod(around.shape(16)[1:]) <= 16 * 1024
    collector = Collector()
    given_, _ = ragged(0)
    collector.observe(**given_)
    data = collector.take()
    config = Collector()._intake.config
    part = unpack(data, config)
    assert part.sections == SECTIONS
    assert list(part.around) == [PAIR_INDEX["policy_ref"]]
    assert part.around[PAIR_INDEX["policy_ref"]].nbytes == 12_672
    # One of a version without the section, and one whose neighbours are cut off.
    head = json.loads(data[8 : 8 + int.from_bytes(data[4:8], "big")])
    head.pop("around")
    head["sections"].remove("around")
    text = json.dumps(head).encode()
    rest = data[8 + int.from_bytes(data[4:8], "big") : -12_672]
    old = unpack(data[:4] + len(text).to_bytes(4, "big") + text + rest, config)
    merged = MergedParts(config)
    merged.add(old, -1)
    assert merged.take().around is None
    merged = MergedParts(config)
    merged.add(old, -1)
    merged.add(part, -2)
    found = merged.take()
    told = found.around.tensor[PAIR_INDEX["policy_ref"], ..., 2, REACH] > 0
    ranks = found.tokens[PAIR_INDEX["policy_ref"], ..., 1]
    assert torch.equal(told, ranks == -2)
    with pytest.raises(ValueError, match="cut off"):
        unpack(data[:-5], config)
    empty = pack(Collector()._intake.take("train"))
    assert "around" not in unpack(empty, config).sections


def test_what_was_written_to_meanwhile_is_unknown_never_wrong():
    monitor, batches = Seen(strict=True), {}
    for number in range(2):
        given_, batches[0, number] = ragged(number)
        monitor.observe(**given_)
    given_["ref"].mul_(0.5)
    report = monitor.step(0)
    of_first = sum(token.micro_batch == 0 for token in report.extremes)
    assert 0 < of_first < 32
    assert_equal(report, monitor.beside, batches, known=of_first)


def test_memory_that_a_caller_uses_again_was_looked_at_before():
    monitor, batches = Seen(strict=True), {}
    buffers, batches[0, 0] = ragged(0, "numpy")
    monitor.observe(**buffers)
    for array in buffers.values():
        array[:] = 0
    assert_equal(monitor.step(0), monitor.beside, batches)


def test_a_view_of_much_more_is_not_held():
    intake = Intake()
    q = -torch.rand(4, 20, 1000)
    p = -torch.rand(4, 20)
    with torch.inference_mode():
        inference = -torch.rand(4, 20)
    for one in (q[..., 3], inference):
        intake.add({"policy": one, "ref": p}, {"mask": None}, None, None, "train", 0)
        assert not intake._neighbours["train"]._held
    intake.add({"policy": p, "ref": -torch.rand(4, 20)}, {"mask": None}, None, None, "train", 0)
    assert len(intake._neighbours["train"]._held) == 1
    summary = intake.take("train")
    assert not intake._neighbours
    assert (summary.around.tensor[PAIR_INDEX["policy_ref"], ..., 2, REACH] > 0).all()


# --- the record ----------------------------------------------------------------------------------
def recorded(path, rules, steps=3, words=None, **options):
    monitor, batches = Monitor(path, rules=rules, strict=True, words=words, **options), {}
    for step in range(steps):
        given_, batches[step] = ragged(step, sequences=8, longest=200)
        given_ |= {"rollout": given_["ref"] - 0.01}
        monitor.observe(**given_)
        monitor.step(step)
    assert monitor.close()
    return batches


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.jsonl"))


def test_only_steps_that_open_or_worsen_an_alert_have_it_and_it_is_private(tmp_path):
    batches = recorded(tmp_path, ALERTING, words=lambda ids: [f"<{one}>" for one in ids])
    run = read_run(tmp_path)
    opened = {alert.step for alert in run.alerts if alert.phase != "end"}
    assert run.neighbours.keys() == opened
    assert len(opened) < 3
    for step, found in run.neighbours.items():
        assert len(found) >= 8
        for one in found:
            first, ids, q, p = looked_up(one.token, batches[step])
            assert (one.first, list(one.ids)) == (first, ids)
            assert list(one.text) == [None if i is None else f"<{i}>" for i in ids]
            if one.token.pair == "policy_ref":
                assert [None if x is None else np.float32(x) for x in one.log_q] == q
                assert [None if x is None else np.float32(x) for x in one.log_p] == p
    private = tmp_path / "tokens.jsonl"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    for path in tmp_path.glob("*.json*"):
        assert (f'"{AROUND}"' in path.read_text()) == (path == private)
    assert "<" not in "".join(p.read_text() for p in tmp_path.glob("*.json*") if p != private)


def test_the_first_of_each_tail_come_first(tmp_path):
    recorded(tmp_path, ALERTING, steps=1)
    (found,) = read_run(tmp_path).neighbours.values()
    order = [(one.token.pair, one.token.tail) for one in found]
    assert len(set(order[: len(set(order))])) == len(set(order))


def test_a_record_grows_by_16_kb_at_most_at_such_a_step(tmp_path):
    long = ['\\"' * 40, "é" * 20, "a"]
    for name, words in (("bare", None), ("with", lambda ids: [long[i % 3] for i in ids])):
        recorded(tmp_path / name, ALERTING, words=words)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(core, "surroundings", lambda *_: Surroundings())
            recorded(tmp_path / f"{name} without", ALERTING, words=words)
        alerted = len(read_run(tmp_path / name).neighbours)
        more = size_of(tmp_path / name) - size_of(tmp_path / f"{name} without")
        assert alerted
        assert 0.8 * AROUND_BYTES * alerted < more <= 16 * 1024 * alerted


def test_without_tokens_there_is_none(tmp_path):
    recorded(tmp_path, ALERTING, log_tokens=False)
    assert not (tmp_path / "tokens.jsonl").exists()
    assert AROUND not in "".join(path.read_text() for path in tmp_path.glob("*.json*"))


def test_neighbours_that_cannot_be_made_cost_themselves_alone(tmp_path, monkeypatch):
    def broken(*_):
        raise MemoryError

    recorded(tmp_path / "whole", ALERTING)
    monkeypatch.setattr(beside, "neighbours_of", broken)
    monitor = Monitor(tmp_path / "torn", rules=ALERTING)
    for step in range(3):
        given_, _ = ragged(step, sequences=8, longest=200)
        monitor.observe(**given_, rollout=given_["ref"] - 0.01)
        monitor.step(step)
    assert monitor.close()
    whole, torn = (read_run(tmp_path / name) for name in ("whole", "torn"))
    assert whole.neighbours
    assert not torn.neighbours
    assert torn.tokens == whole.tokens
    assert monitor.errors == len(whole.neighbours)


def test_words_that_fail_cost_the_text_alone(tmp_path):
    recorded(tmp_path, ALERTING, words=lambda ids: ["one"])
    (found, *_) = read_run(tmp_path).neighbours.values()
    assert all(one.text is None for one in found)
    assert TokenText(SimpleNamespace(decode=lambda ids: f"{ids}"), 0).words([3, 3]) == ["[3]"] * 2


@pytest.mark.parametrize(
    "broken",
    [
        {"token": 99},
        {"ids": [1]},
        {"first": 5},
        {"log_q": ["x"] * 33},
        {"text": [1] * 33},
        {"first": None},
    ],
)
def test_a_row_with_a_broken_one_is_skipped_and_counted(tmp_path, broken):
    recorded(tmp_path, ALERTING, steps=1)
    path = tmp_path / "tokens.jsonl"
    row = json.loads(path.read_text())
    row[AROUND][0] |= broken
    path.write_text(json.dumps(row) + "\n")
    run = read_run(tmp_path)
    assert run.bad_lines == 1
    assert not run.neighbours
