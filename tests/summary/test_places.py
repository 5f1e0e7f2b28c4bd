"""Mean |d| by place, against loops over the tokens."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from klmonitor import Collector, Monitor
from klmonitor.numbers.places import DECILES, TURNS, by_place
from klmonitor.pairs import parse_pairs
from klmonitor.summary.batch import build
from klmonitor.summary.places import place_sums

ALERTING = {"limit": {"policy_ref": 1e-9}}
(PAIR,) = parse_pairs(["policy_ref"])


def looped(sequences):
    """The sums by a loop; `sequences` are lists of d, None where a token does not count."""
    found = np.zeros((DECILES + TURNS, 2))
    for row in sequences:
        n = sum(d is not None for d in row)
        rank, turn, before = 0, -1, None
        for d in row:
            if d is not None:
                turn += before is None
                if math.isfinite(d):
                    for place in (DECILES * rank // n, DECILES + min(turn, TURNS - 1)):
                        found[place] += (1, abs(d))
                rank += 1
            before = d
    return found


sequences_of = st.lists(
    st.lists(
        st.one_of(st.none(), st.none(), st.floats(-5, 5, width=32), st.just(math.inf)), max_size=60
    ),
    min_size=1,
    max_size=5,
)


@given(sequences_of, st.booleans())
def test_the_sums_are_those_of_a_loop(sequences, packed):
    lengths = [len(row) for row in sequences]
    width = max(lengths)
    if not width:
        return
    shape = (len(sequences), width)
    q, p, mask = np.full(shape, -1.0), np.full(shape, -3.0), np.zeros(shape, bool)
    for i, row in enumerate(sequences):
        for t, d in enumerate(row):
            if d is not None:
                p[i, t], mask[i, t] = q[i, t] + d, True
    given_ = {name: torch.from_numpy(x) for name, x in (("policy", q), ("ref", p), ("mask", mask))}
    layout = {}
    if packed:
        cut = [np.concatenate([x[i, :n] for i, n in enumerate(lengths)]) for x in (q, p, mask)]
        given_ = dict(zip(given_, map(torch.from_numpy, cut), strict=True))
        layout["cu_seqlens"] = torch.tensor([0, *np.cumsum(lengths)])
    mask = given_.pop("mask")
    batch = build(given_, mask=mask, **layout)
    found = place_sums(batch, PAIR, DECILES, TURNS).numpy()
    np.testing.assert_allclose(found, looped(sequences), rtol=1e-12, atol=1e-12)


def batch(seed):
    draw = torch.Generator().manual_seed(seed)
    q = -torch.empty(4, 50).exponential_(1.0, generator=draw)
    mask = torch.rand(4, 50, generator=draw) < 0.8
    p = q - 0.1 * torch.rand(4, 50, generator=draw)
    return {"policy": q, "ref": p, "mask": mask}


def places_of(path):
    rows = [json.loads(line) for line in (path / "tokens.jsonl").read_text().splitlines()]
    return {row["step"]: row.get("places") for row in rows}


def test_a_step_with_an_alert_keeps_it_over_all_its_micro_batches(tmp_path):
    monitor, rows = Monitor(tmp_path, rules=ALERTING, strict=True), []
    for number in range(3):
        given_ = batch(number)
        monitor.observe(**given_)
        d = (given_["ref"].double() - given_["policy"].double()).tolist()
        mask = given_["mask"].tolist()
        rows += [
            [x if m else None for x, m in zip(a, b, strict=True)]
            for a, b in zip(d, mask, strict=True)
        ]
    assert monitor.step(0).alerts
    monitor.observe(**batch(0))
    assert not monitor.step(1).alerts
    assert monitor.close()
    found = places_of(tmp_path)
    expected = by_place(looped(rows))
    assert found[0]["policy_ref"]["position"] == pytest.approx(expected["position"], rel=1e-6)
    assert found[0]["policy_ref"]["turn"] == pytest.approx(expected["turn"], rel=1e-6)
    assert len(expected["turn"]) > 4
    assert found[1] is None


def test_where_tensors_are_not_at_hand_it_is_unknown(tmp_path):
    written = Monitor(tmp_path / "written", rules=ALERTING, strict=True)
    given_ = batch(0)
    written.observe(**given_)
    given_["ref"].mul_(2)
    assert written.step(0).alerts
    driver = Monitor(tmp_path / "driver", rules=ALERTING, strict=True)
    collector = Collector()
    collector.observe(**batch(0))
    driver.add_part(collector.take())
    driver.observe(**batch(1))
    assert driver.step(0).alerts
    for monitor in (written, driver):
        assert monitor.close()
        assert places_of(monitor.run_dir) == {0: None}
