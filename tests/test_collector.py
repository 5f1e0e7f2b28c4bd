"""Workers that sum and a driver that merges: parts as bytes."""

from __future__ import annotations

import json
import logging
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from klmonitor import Collector, Monitor
from klmonitor.summary import around
from klmonitor.summary.fields import SummaryConfig
from klmonitor.summary.parts import LAYOUT, MAGIC, SECTIONS, MergedParts, pack, unpack
from klmonitor.summary.state import ORDERED, Summary

GROUPS = ["math", "chat"]


def tokens(seed, sequences=8, length=32, policies=("old", "policy", "ref")):
    generator = torch.Generator().manual_seed(seed)
    base = -torch.rand(sequences, length, generator=generator)
    found = {name: base + 0.1 * torch.randn(base.shape, generator=generator) for name in policies}
    return {
        **found,
        "mask": torch.rand(base.shape, generator=generator) < 0.8,
        "token_ids": torch.randint(0, 1000, base.shape, generator=generator),
        "prompt_ids": torch.arange(sequences) // 2 + 100 * seed,
        "group": GROUPS * (sequences // 2),
    }


def assert_same_numbers(found, expected, rel=1e-9):
    assert found.pairs.keys() == expected.pairs.keys()
    for name, pair in expected.pairs.items():
        for metric, value in pair.values.items():
            assert found.pairs[name][metric] == pytest.approx(
                value, rel=rel, abs=1e-12, nan_ok=True
            ), (name, metric)


def test_a_driver_that_merges_parts_reports_what_one_process_would():
    whole, driver = Monitor(groups=GROUPS, strict=True), Monitor(groups=GROUPS, process_group=False)
    for worker in range(3):
        collector = Collector(f"actor-{worker}", groups=GROUPS)
        for micro_batch in range(2):
            batch = tokens(10 * worker + micro_batch)
            collector.observe(**batch)
            whole.observe(**batch)
        driver.add_part(collector.take())
    found, expected = driver.step(0), whole.step(0)
    assert_same_numbers(found, expected)
    assert found.health.active
    assert found.health.errors == 0


def test_a_part_and_what_the_driver_itself_observed_add_up():
    whole, driver, collector = Monitor(), Monitor(), Collector("one")
    for monitor, seed in ((whole, 0), (whole, 1), (driver, 0), (collector, 1)):
        monitor.observe(**{**tokens(seed), "group": None})
    driver.add_part(collector.take())
    assert_same_numbers(driver.step(0), whole.step(0))


def test_a_token_has_its_worker_s_name_in_its_place():
    batch = tokens(3)
    batch["ref"] = batch["ref"].clone()
    batch["mask"][5, 7] = True
    batch["ref"][5, 7] += 9.0
    driver = Monitor(groups=GROUPS, process_group=False)
    for name in ("actor-0", "actor-7"):
        collector = Collector(name, groups=GROUPS)
        collector.observe(**(batch if name == "actor-7" else tokens(4)))
        driver.add_part(collector.take())
    token = max(driver.step(0).pairs["policy_ref"].extremes, key=lambda token: token.log_ratio)
    assert (token.worker, token.sequence, token.position) == ("actor-7", 5, 7)
    assert token.where.startswith("worker actor-7, micro-batch 0, sequence 5, position 7")


def test_taking_starts_anew_and_phases_stay_apart():
    collector, driver = Collector(), Monitor(process_group=False)
    collector.observe(**{**tokens(0), "group": None}, phase="eval")
    driver.add_part(collector.take("eval"))
    driver.add_part(collector.take("eval"))
    driver.add_part(collector.take())
    assert driver.step(0, phase="eval").pairs["policy_ref"].tokens == tokens(0)["mask"].sum()
    assert driver.step(0).pairs == {}


# --- what fails --------------------------------------------------------------------------------
def test_a_worker_whose_observes_fail_makes_the_driver_inactive():
    collector, driver = Collector("actor-3"), Monitor(process_group=False)
    wrong = {"policy": torch.zeros(2, 3), "ref": torch.zeros(3, 2)}
    with pytest.raises(ValueError, match="slice both to the response tokens"):
        collector.observe(**wrong)  # setup
    for _ in range(5):
        collector.observe(**wrong)
    driver.add_part(collector.take())
    report = driver.step(0)
    assert report.run_values["klmonitor/active"] == 0
    assert report.run_values["klmonitor/errors"] >= 5
    assert "actor-3: observe: ValueError: ref has shape" in report.health.why


def test_a_worker_that_works_again_is_active_again():
    collector, driver = Collector(), Monitor(process_group=False)
    good = {**tokens(0), "group": None}
    collector.observe(**good)
    for _ in range(5):
        collector.observe(policy=torch.zeros(2, 3), ref=torch.zeros(3, 2))
    driver.add_part(collector.take())
    assert not driver.step(0).health.active
    for _ in range(101):  # its rest, and one that counts
        collector.observe(**good)
    driver.add_part(collector.take())
    assert driver.step(1).health.active


def garbage():
    good = Collector()
    good.observe(**{**tokens(0), "group": None})
    part = good.take()
    end = 8 + int.from_bytes(part[4:8], "big")
    head = json.loads(part[8:end])

    def with_head(**changes):
        text = json.dumps({**head, **changes}).encode()
        return MAGIC + len(text).to_bytes(4, "big") + text + part[end:]

    yield "nothing", b""
    yield "text", b"hello, this is no part"
    yield "not bytes", None
    yield "a pickle", b"\x80\x04\x95"
    yield "cut in the head", part[:40]
    yield "cut in the body", part[:-20]
    yield "longer", part + b"x" * 10**6
    yield "of another layout", with_head(layout=LAYOUT + 1)
    yield "of another digest", with_head(digest="0" * 16)
    yield "of no phase", with_head(phase="test")
    yield "of another number", with_head(n=head["n"] + 1)
    yield "without what is needed", with_head(sections=["histogram"])
    yield "without health", with_head(health={})
    wrong = Collector(groups=["other names"])
    wrong.observe(**{**tokens(0), "group": None})
    yield "of other groups", wrong.take()


@pytest.mark.parametrize(("what", "part"), list(garbage()))
def test_what_is_no_part_is_counted_and_named_and_changes_nothing(what, part, caplog):
    driver = Monitor(process_group=False)
    driver.observe(**{**tokens(1), "group": None})
    with caplog.at_level(logging.WARNING):
        driver.add_part(part)
        driver.add_part(part)
    report = driver.step(0)
    assert report.run_values["klmonitor/errors"] == 2
    assert report.pairs["policy_ref"].tokens == tokens(1)["mask"].sum()
    assert [record.message.count("a worker's part failed") for record in caplog.records] == [1]


@given(st.binary(max_size=300), st.integers(0, 300))
def test_no_bytes_get_through(noise, at):
    good = Collector()
    good.observe(**{**tokens(0), "group": None})
    part = good.take()
    mangled = part[:at] + noise + part[at + len(noise) :]
    try:
        found = unpack(mangled, SummaryConfig())
    except ValueError:
        return
    MergedParts(SummaryConfig()).add(found, -1)


# --- what a part is ------------------------------------------------------------------------------
def test_a_summary_survives_its_bytes():
    collector = Collector(groups=GROUPS)
    collector.observe(**tokens(0))
    config = SummaryConfig(groups=tuple(sorted(GROUPS)))
    data = collector.take()
    merged = MergedParts(config)
    merged.add(unpack(data, config), 0)
    same = Collector(groups=GROUPS)
    same.observe(**tokens(0))
    expected = same._intake.take("train")
    found = merged.take()
    assert np.array_equal(found.whole(), expected.whole())
    for name in ORDERED:
        assert np.array_equal(found.arrays[name], expected.arrays[name]), name


def test_policies_that_were_not_seen_are_named():
    collector = Collector()
    collector.observe(**{**tokens(0), "group": None})
    assert unpack(collector.take(), SummaryConfig()).missing == ("rollout",)


@pytest.mark.parametrize(
    ("absent", "unknown", "known"),
    [
        ("histogram", ("log_ratio/p50", "outliers/k1", "outliers/rate"), ("k1/mean", "k3/se")),
        ("tokens", ("dominance/k1/level", "dominance/level"), ("k1/mean", "outliers/k1")),
        ("policies", ("positive_logp", "zero_logp"), ("k1/mean", "dominance/level")),
        ("sequences", ("dominance/top_sequence_share",), ("k1/mean",)),
        ("prompts", ("prompts",), ("k1/mean", "k1/se")),
    ],
)
def test_a_section_that_is_absent_is_unknown_whatever_it_is_merged_with(absent, unknown, known):
    driver = Monitor(process_group=False)
    for seed in range(2):
        collector = Collector(f"{seed}")
        collector.observe(**{**tokens(seed), "group": None})
        part = collector.take()
        driver.add_part(without(part, absent) if seed else part)
    pair = driver.step(0).pairs["policy_ref"]
    assert not driver.errors
    assert [name for name in unknown if not np.isnan(pair[name])] == []
    assert [name for name in known if np.isnan(pair[name])] == []
    if absent == "prompts":
        assert pair["clusters"] == pair["sequences"]


def without(part, section):
    """The part as a worker would send it that leaves a section out."""
    config = SummaryConfig()
    merged = MergedParts(config)
    merged.add(unpack(part, config), 0)
    summary, empty = merged.take(), Summary.empty(config)
    getattr(summary, section).copy_(getattr(empty, section))
    data = pack(summary)
    end = 8 + int.from_bytes(data[4:8], "big")
    head = json.loads(data[8:end])
    head["sections"] = [name for name in SECTIONS if name != section]
    text = json.dumps(head).encode()
    return MAGIC + len(text).to_bytes(4, "big") + text + data[end:]


def test_a_part_of_64k_tokens_takes_8_kb_a_pair_at_most():
    collector, generator = Collector("actor-12"), torch.Generator().manual_seed(0)
    q = -3 * torch.rand(128, 512, generator=generator)
    p, old = (q + 0.1 * torch.randn(q.shape, generator=generator) for _ in range(2))
    ids = torch.randint(0, 150_000, q.shape, generator=generator)
    collector.observe(policy=q, ref=p, old=old, token_ids=ids, prompt_ids=torch.arange(128) // 8)
    data = collector.take()
    head = json.loads(data[8 : 8 + int.from_bytes(data[4:8], "big")])
    beside = 4 * len(head["around"]) * math.prod(around.shape(SummaryConfig().top)[1:])
    assert len(data) - beside <= 2 * 8192
    assert 0 < beside <= 2 * 16 * 1024  # an optional section


def test_prompts_may_be_named_by_strings():
    by_name, by_number = Monitor(strict=True), Monitor(strict=True)
    batch = {**tokens(0), "group": None}
    by_number.observe(**batch)
    by_name.observe(**{**batch, "prompt_ids": [f"uid-{i}" for i in batch["prompt_ids"].tolist()]})
    found, expected = (one.step(0).pairs["policy_ref"] for one in (by_name, by_number))
    assert found["prompts"] == expected["prompts"] == 4
    assert found.k1.se == pytest.approx(expected.k1.se, rel=1e-12)


def test_switched_off_it_takes_nothing_and_sends_an_empty_part(monkeypatch):
    monkeypatch.setenv("KLMONITOR_DISABLE", "1")
    collector = Collector()
    collector.observe(policy=torch.zeros(2, 3), ref=torch.zeros(3, 2))
    monkeypatch.setenv("KLMONITOR_DISABLE", "0")
    driver = Monitor(process_group=False)
    driver.add_part(collector.take())
    assert driver.step(0).pairs == {}
    assert not driver.errors


def test_a_driver_merges_many_parts():
    """How fast is measured in benchmarks/speed.py; here that none is lost."""
    parts = []
    for worker in range(64):
        collector = Collector(f"{worker}")
        collector.observe(**{**tokens(worker), "group": None})
        parts.append(collector.take())
    driver = Monitor(process_group=False)
    for part in parts:
        driver.add_part(part)
    report = driver.step(0)
    expected = sum(int(tokens(worker)["mask"].sum()) for worker in range(64))
    assert report.pairs["policy_ref"].tokens == expected
