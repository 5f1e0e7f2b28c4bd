"""What a KL term pulls, summed: as torch does it for a device, the same as numpy on the CPU."""

from __future__ import annotations

import pytest
import torch

from klmonitor import Penalty
from klmonitor.pairs import PAIR_INDEX, default_pairs
from klmonitor.summary import pulls
from klmonitor.summary.batch import build
from klmonitor.summary.extras import Extras
from klmonitor.summary.fields import PULL, SummaryConfig
from klmonitor.summary.state import Summary

ROWS, COLUMNS = 6, 9
TERMS = [
    Penalty("k3", beta=0.3),
    Penalty("k2", clamp_d=0.5),
    Penalty("k3", ratio="differentiated", clamp=1.0),
    Penalty("k1", ratio="detached", level="geometric"),
    Penalty("abs", straight_through=True),
    Penalty("k1", "reward", returns="to_go"),
    Penalty("k1", "reward", returns="sequence", leave_one_out=3),
]


def summed(penalty, packed=False, tokens=ROWS * COLUMNS):
    generator = torch.Generator().manual_seed(0)
    shape = (ROWS, COLUMNS)
    policy = -1.5 - torch.rand(shape, generator=generator)
    given = {
        name: policy - 0.4 * torch.randn(shape, generator=generator) for name in ("old", "ref")
    }
    given["policy"], given["ref"][0, 0] = policy, -torch.inf
    mask = torch.rand(shape, generator=generator) < 0.8
    mask[1] = False
    advantages = torch.randn(shape, generator=generator)
    advantages[2, 3] = torch.nan
    layout = {"mask": mask}
    if packed:
        given = {name: x.flatten() for name, x in given.items()}
        layout = {"mask": mask.flatten(), "cu_seqlens": torch.arange(ROWS + 1) * COLUMNS}
        advantages = advantages.flatten()[None]
    else:
        layout["prompt_ids"] = torch.arange(ROWS) // 3
    batch = build(given, **layout)
    state = Summary.empty(SummaryConfig())
    pair = next(pair for pair in default_pairs(batch.log_probs) if pair.name == "policy_ref")
    pulls.add(state, batch, pair, penalty, Extras(None, None, advantages, 0.07), tokens)
    return state.pulls[PAIR_INDEX["policy_ref"]].clone()


@pytest.mark.parametrize("penalty", TERMS, ids=str)
@pytest.mark.parametrize("layout", ["rows", "fewer rows", "packed"])
def test_torch_and_numpy_sum_the_same(monkeypatch, penalty, layout):
    given = {"packed": layout == "packed", "tokens": COLUMNS * (4 if layout == "fewer rows" else 6)}
    found = summed(penalty, **given)
    monkeypatch.setattr(pulls, "_array", lambda x: x)
    expected = summed(penalty, **given)
    unknown = given["packed"] and (penalty.returns, penalty.level) != ("token", "token")
    assert (expected[PULL["tokens"]] > 0) != unknown, "what is compared is something"
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("penalty", TERMS[:3], ids=str)
def test_overflow_is_no_warning(recwarn, penalty):
    """A token of d = 800 is one of the sums' own, and nothing to print into training."""
    policy = torch.tensor([[-801.0, -1.0, -2.0]])
    batch = build({"policy": policy, "ref": torch.tensor([[-1.0, -1.5, -1.2]])})
    state, pair = Summary.empty(SummaryConfig()), default_pairs(batch.log_probs)[0]
    pulls.add(state, batch, pair, penalty, Extras(), 3)
    assert not recwarn.list
    assert state.pulls[PAIR_INDEX[pair.name], PULL["tokens"]] >= 2
