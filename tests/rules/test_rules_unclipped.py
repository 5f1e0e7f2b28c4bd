"""One token whose ratio no clipping bounds: what is summed of it, and who is told."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from klmonitor import Monitor
from klmonitor.summary.fields import FAR_RATIO

ROWS, COLUMNS = 16, 32
FAR = 7.0


def batch(seed=0, rows=ROWS):
    """Log-probs of old and policy, one token of which policy finds e^7 times likelier; A of it -1.

    Its place is (3, 5).
    """
    rng = np.random.default_rng(seed)
    old = -rng.exponential(1.5, (rows, COLUMNS)) - 0.5
    policy = old + 0.05 * rng.normal(size=old.shape)
    old[3, 5], policy[3, 5] = -8.0, -8.0 + FAR
    advantages = rng.normal(size=rows)
    advantages[3] = -1.0
    return old, policy, advantages


def told(layout, seed=0, rows=ROWS, mask=None, **options):
    old, policy, advantages = batch(seed, rows)
    monitor = Monitor(process_group=False, strict=True, **options)
    monitor.observe(old=old, policy=policy, mask=mask, **layout(advantages))
    report = monitor.step(1)
    return report, [alert for alert in report.alerts if "unclipped" in alert.kinds]


def of_sequences(advantages):
    return {"advantages": torch.tensor(advantages)}


def of_tokens(advantages):
    return {"advantages": np.repeat(advantages[:, None], COLUMNS, axis=1)}


@pytest.mark.parametrize("layout", [of_sequences, of_tokens])
def test_it_is_critical_where_advantage_and_clip_range_are_known(layout):
    report, (alert,) = told(layout, clip_range=(0.8, 1.28))
    assert alert.severity == "critical"
    assert f"1 token with a ratio of {math.exp(FAR):.0f} to old" in alert.message
    assert "sequence 3, position 5" in alert.message
    old, policy, advantages = batch()
    d = policy - old
    weights = np.abs(advantages)[:, None] * np.exp(d)
    weights = np.where(advantages[:, None] > 0, np.minimum(weights, FAR_RATIO), weights)
    pair = report.pairs["old_policy"]
    assert pair["unclipped/tokens"] == 1
    assert pair["unclipped/share"] == pytest.approx(math.exp(FAR) / weights.sum(), rel=1e-9)
    assert pair["unclipped/ratio"] == pytest.approx(math.exp(FAR), rel=1e-9)
    assert pair["clip/high"] == pytest.approx((np.exp(d) > 1.28).mean(), abs=0.01)


def test_one_token_of_few_is_enough():
    """Four sequences of sixteen tokens: no other kind is critical on as little."""
    mask = np.zeros((ROWS, COLUMNS), dtype=bool)
    mask[3, :8] = True
    _, (alert,) = told(of_sequences, mask=mask, clip_range=(0.8, 1.2))
    assert alert.severity == "critical"
    assert "rests on" not in alert.message


def test_it_warns_where_one_of_them_is_unknown():
    _, (alert,) = told(of_sequences)
    assert alert.severity == "warn"
    assert "its clip range is not known" in alert.message
    _, alerts = told(lambda _: {}, clip_range=(0.8, 1.2))
    assert [alert.severity for alert in alerts] == ["warn"]
    assert f"one token has a ratio of {math.exp(FAR):.0f} to old" in alerts[0].message
    assert "pass advantages= to tell" in alerts[0].message


@pytest.mark.parametrize(
    "layout",
    [
        lambda a: {"advantages": np.abs(a) + 0.1},  # clipped: the advantage is positive
        lambda a: {"advantages": np.full((ROWS, COLUMNS), np.nan)},
        lambda a: {"advantages": np.zeros(ROWS)},
    ],
)
def test_what_is_clipped_or_has_no_weight_is_not_told(layout):
    report, alerts = told(layout, clip_range=(0.8, 1.2))
    known = not math.isnan(report.pairs["old_policy"]["unclipped/tokens"])
    assert not [alert for alert in alerts if alert.severity == "critical"]
    assert not (known and alerts)


def test_a_bound_for_negative_advantages_is_one():
    _, alerts = told(of_sequences, clip_range=(0.8, 1.2, 3.0))
    assert not alerts


def test_hidden_tokens_and_ordinary_updates_say_nothing():
    mask = np.ones((ROWS, COLUMNS), dtype=bool)
    mask[3, 5] = False
    _, alerts = told(of_sequences, mask=mask, clip_range=(0.8, 1.2))
    assert not alerts
    rng = np.random.default_rng(1)
    monitor = Monitor(process_group=False, clip_range=(0.8, 1.2))
    for step in range(1, 40):
        old = -rng.exponential(1.5, (8, 16))
        policy = old + 0.3 * rng.normal(size=old.shape)
        monitor.observe(old=old, policy=policy, advantages=rng.normal(size=8))
        assert not [a for a in monitor.step(step).alerts if "unclipped" in a.kinds]


@pytest.mark.parametrize(
    "given", [(0.8,), (1.2, 0.8), (0.8, 1.2, 3.0, 4.0), (0.8, math.inf), (-0.2, 1.2)]
)
def test_a_clip_range_that_is_none_is_refused(given):
    with pytest.raises(ValueError, match="clip_range"):
        Monitor(clip_range=given)


def test_advantages_of_another_shape_or_kind_are_refused():
    old, policy, _ = batch()
    with pytest.raises(ValueError, match="advantages have shape"):
        Monitor(process_group=False).observe(old=old, policy=policy, advantages=np.zeros(5))
    with pytest.raises(TypeError, match="pass floats"):
        Monitor(process_group=False).observe(
            old=old, policy=policy, advantages=np.zeros(ROWS, dtype=np.int64)
        )


def test_packed_tokens_have_their_sequence_s_advantage():
    old, policy, advantages = batch()
    monitor = Monitor(process_group=False, clip_range=(0.8, 1.28))
    ends = np.arange(ROWS + 1) * COLUMNS
    monitor.observe(old=old.ravel(), policy=policy.ravel(), cu_seqlens=ends, advantages=advantages)
    packed = monitor.step(1).pairs["old_policy"]
    report, _ = told(of_sequences)
    for name in ("unclipped/tokens", "unclipped/share", "unclipped/ratio"):
        assert packed[name] == pytest.approx(report.pairs["old_policy"][name], rel=1e-9)
