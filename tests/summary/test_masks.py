"""A mask for each pair: what is rejected counts for one comparison and not for another."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from klmonitor import Collector, Monitor

CPU = {"process_group": False}


def batch(seed=0, shape=(6, 20)):
    generator = torch.Generator().manual_seed(seed)
    rollout = -torch.rand(shape, generator=generator) - 0.01
    old, ref = (rollout + s * torch.randn(shape, generator=generator) for s in (0.05, 0.3))
    before = torch.rand(shape, generator=generator) < 0.9
    after = before & (torch.rand(shape, generator=generator) < 0.7)
    return {"rollout": rollout, "old": old, "ref": ref}, before, after


def alone(policies, pair, mask):
    monitor = Monitor(**CPU, pairs=[pair], strict=True)
    monitor.observe(**policies, mask=mask, prompt_ids=torch.arange(6) // 2)
    return monitor.step(0).pairs[pair]


@pytest.mark.parametrize("through", ["monitor", "collector"])
def test_each_pair_is_summed_over_its_own_mask(through):
    policies, before, after = batch()
    monitor = Monitor(**CPU, strict=True)
    source = monitor if through == "monitor" else Collector("actor-0")
    masks = {"rollout_old": before, "old_ref": after.int()}
    source.observe(**policies, mask=masks, prompt_ids=torch.arange(6) // 2)
    if through == "collector":
        monitor.add_part(source.take())
    found = monitor.step(0)
    assert set(found.pairs) == {"rollout_old", "old_ref"}
    for pair, mask in (("rollout_old", before), ("old_ref", after)):
        expected = alone(policies, pair, mask)
        q, p = (policies[name].double().numpy() for name in pair.split("_"))
        d = (p - q)[mask.numpy()]
        assert found.pairs[pair].k3.mean == pytest.approx((np.expm1(d) - d).mean(), rel=1e-12)
        assert found.pairs[pair].tokens == mask.sum()
        for name in ("k1/se", "sequences", "ess", "positive_logp", "sequence/ratio_beyond_3"):
            assert found.pairs[pair][name] == pytest.approx(expected[name], nan_ok=True), name
        if through == "monitor":
            assert [t.position for t in found.pairs[pair].extremes] == [
                t.position for t in expected.extremes
            ]


def test_one_mask_for_two_pairs_is_one_pass():
    policies, before, _ = batch()
    one, other = Monitor(**CPU, strict=True), Monitor(**CPU, strict=True)
    one.observe(**policies, mask=before)
    other.observe(**policies, mask={"old_ref": before, "rollout_old": before})
    assert one.step(0).scalars() == pytest.approx(other.step(0).scalars(), nan_ok=True)


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        ({"old_reff": None}, "unknown pair 'old_reff'"),
        ({"policy_ref": None}, "both its policies"),
        ({}, "no pair"),
        ({"old_ref": torch.ones(2, 2)}, "shape"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_at_setup(masks, said):
    policies, _, _ = batch()
    with pytest.raises(ValueError, match=said):
        Monitor(**CPU).observe(**policies, mask=masks)


def test_a_policy_that_is_lost_later_costs_its_own_pair_alone():
    policies, before, after = batch()
    monitor = Monitor(**CPU)
    masks = {"rollout_old": before, "old_ref": after}
    monitor.observe(**policies, mask=masks)
    monitor.step(0)
    monitor.observe(rollout=policies["rollout"], old=policies["old"], mask=masks)
    found = monitor.step(1)
    assert set(found.pairs) == {"rollout_old"}
    assert found.pairs["rollout_old"].tokens == before.sum()
