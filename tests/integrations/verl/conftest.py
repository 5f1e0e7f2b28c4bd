"""verl's own code on synthetic tensors; skipped where it is absent (make test-verl-quick)."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from tests.helpers.mailbox import LocalMailbox as LocalMailbox
from tests.integrations.raylab.marks import need


def pytest_collection_modifyitems(items):
    need(items, "verl", "verl")


def tokens(seed=0, rows=12, length=24, padding=4):
    """A batch as verl's driver has it: four policies' log-probs, masks, prompts, padding rows."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows + padding, length)

    def near(x, scale):
        return (x + scale * torch.randn(shape, generator=generator)).clamp(max=-1e-4)

    rollout = -3 * torch.rand(shape, generator=generator) - 0.01
    old = near(rollout, 0.02)
    policy, ref = near(old, 0.05), near(old, 0.3)
    lengths = torch.randint(1, length + 1, (rows + padding,), generator=generator)
    mask = (torch.arange(length)[None] < lengths[:, None]).long()
    mask[rows:] = 0
    return {
        "rollout": rollout,
        "old": old,
        "policy": policy,
        "ref": ref,
        "mask": mask,
        "ids": torch.randint(3, 200, shape, generator=generator),
        "entropy": torch.rand(shape, generator=generator),
        "uid": np.array([f"prompt-{row // 4}" for row in range(rows + padding)], dtype=object),
    }


def truth(q, p, mask):
    """k1, k3 and the number of tokens of KL(q || p), from float64."""
    d = (p.double() - q.double())[mask.bool()].numpy()
    return -d.mean(), (np.expm1(d) - d).mean(), d.size


class Engine:
    """Of a worker: its place."""

    def __init__(self, rank=0, ranks=1, speaks=True):
        self.place = rank, ranks, speaks

    def get_data_parallel_rank(self):
        return self.place[0]

    def get_data_parallel_size(self):
        return self.place[1]

    def is_mp_src_rank_with_outputs(self):
        return self.place[2]


class Owner:
    """A worker of verl's, as far as we look at it."""

    def __init__(self, *place):
        self.engine = Engine(*place)


class Tokenizer:
    """Decodes."""

    def decode(self, ids):
        return "".join(chr(97 + i % 26) for i in ids)


@pytest.fixture
def verl():
    """The package, and our hooks in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import verl

        import klmonitor_verl  # noqa: F401
        from klmonitor_verl.plugin import PROCESS

        PROCESS.install()
        import verl.trainer.ppo.core_algos
        import verl.trainer.ppo.ray_trainer
        import verl.trainer.ppo.rollout_corr_helper
        import verl.utils.tracking
    return verl
