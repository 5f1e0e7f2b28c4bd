"""What version 0.1.0's first record and checkpoint hold is read and continued.

`data/v1` was written by that version: a state taken after step 59, and the record of steps 60 to 69
of the monitor that was continued from it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from klmonitor import Monitor
from klmonitor.record import read_run

DATA = Path(__file__).parent / "data" / "v1"
CHANGED = {"best", "spike/z", "cv/lambda", "cv/mean", "cv/se"}
"""Metrics whose meaning is another one by now: the verdict's, that of the rules' level, and the
mixture's, which counts each token at the lambda of the others."""


def observed(monitor, step):
    """What the monitor of the record saw at a step."""
    generator = torch.Generator().manual_seed(step)
    q = -torch.rand(8, 24, generator=generator, dtype=torch.float64)
    d = 0.05 * torch.randn(8, 24, generator=generator, dtype=torch.float64)
    if step == 60:
        d[3, 7] = 6.0
    if step >= 64:
        d *= 6
    mask = torch.rand(8, 24, generator=generator) < 0.8
    monitor.observe(
        policy=q,
        ref=q + d,
        old=q - d / 10,
        mask=mask,
        token_ids=torch.arange(192).view(8, 24),
        prompt_ids=torch.arange(8) // 2,
        group=["math", "chat"] * 4,
    )
    return monitor.step(step)


@pytest.fixture(scope="module")
def continued():
    monitor = Monitor(groups=["math", "chat"], half_life=20, strict=True)
    monitor.load_state_dict(json.loads((DATA / "state.json").read_text(encoding="utf-8")))
    return [observed(monitor, step) for step in range(60, 70)]


def test_a_state_is_continued_with_the_same_numbers(continued):
    record = read_run(DATA / "run")
    assert record.bad_lines == 0
    assert [report.step for report in record.reports] == list(range(60, 70))
    for mine, theirs in zip(continued, record.reports, strict=True):
        assert mine.pairs.keys() == theirs.pairs.keys() == {"policy_ref", "old_policy"}
        for name, pair in theirs.pairs.items():
            for metric, value in pair.values.items():
                if metric not in CHANGED:
                    rel = 1e-6 if metric.endswith("/j") else 1e-9
                    assert mine.pairs[name][metric] == pytest.approx(value, rel=rel, abs=1e-12), (
                        mine.step,
                        name,
                        metric,
                    )


def test_its_alerts_and_tokens_are_read():
    record = read_run(DATA / "run")
    spikes = [alert for alert in record.alerts if alert.kind == "spike" and alert.phase == "open"]
    assert [alert.step for alert in spikes] == [60, 64, 64]
    first = record.reports[0].pairs["policy_ref"]
    assert max(token.log_ratio for token in first.extremes) == 6.0
    assert "believe" in record.reports[0].explain()


def test_a_state_that_is_saved_again_continues_alike(continued):
    state = json.loads((DATA / "state.json").read_text(encoding="utf-8"))
    first = Monitor(groups=["math", "chat"], half_life=20)
    first.load_state_dict(state)
    second = Monitor(groups=["math", "chat"], half_life=20)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    again = observed(second, 60).scalars()
    for name, value in continued[0].scalars().items():
        assert again[name] == value or (math.isnan(value) and math.isnan(again[name])), name
