"""Batches of every kind, for the passes to agree on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from klmonitor.summary.batch import TokenBatch, build
from klmonitor.summary.fields import SummaryConfig

CONFIG = SummaryConfig(groups=("math",), prompt_buckets=64)
POLICIES = ("policy", "ref", "old", "rollout")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ODD = (np.nan, np.inf, -np.inf, 0.0, -1e-30, -25.0, -900.0, 900.0, 1e30, -0.01)


def made_up(
    seed: int,
    rows: int,
    columns: int,
    policies: int = 2,
    dtypes: tuple[torch.dtype, ...] = (torch.float32,),
    scale: float = 0.1,
    odd: float = 0.0,
    kept: float | None = 0.8,
    grid: int = 0,
) -> TokenBatch:
    """Log-probs of made-up tokens.

    Args:
        seed: decides everything.
        rows: sequences.
        columns: tokens of each.
        policies: how many of `POLICIES`.
        dtypes: of their log-probs, in turn.
        scale: of the differences between policies, nats.
        odd: share of values from `ODD`.
        kept: share of tokens that count; None: no mask.
        grid: steps of a nat that log-probs are rounded to, for ties; 0: not rounded.
    """
    generator = np.random.default_rng(seed)
    common = -generator.exponential(1.0, (rows, columns))
    log_probs = {}
    for i, name in enumerate(POLICIES[:policies]):
        values = common + scale * generator.standard_t(4, common.shape)
        values = np.round(values * grid) / grid if grid else values
        replaced = generator.random(common.shape) < odd
        values[replaced] = generator.choice(ODD, replaced.sum())
        log_probs[name] = torch.tensor(values).to(dtypes[i % len(dtypes)])
    mask = None if kept is None else torch.tensor(generator.random(common.shape) < kept)
    ids = torch.tensor(generator.integers(0, 1000, common.shape))
    prompts = torch.tensor(generator.integers(0, 4, rows))
    return build(log_probs, mask=mask, token_ids=ids, prompt_ids=prompts)


def seeded(seed: int) -> TokenBatch:
    """A batch whose every property is drawn."""
    generator = np.random.default_rng(seed)
    return made_up(
        seed,
        rows=int(generator.integers(1, 7)),
        columns=int(generator.integers(1, 520)),
        policies=int(generator.integers(2, 5)),
        dtypes=tuple(DTYPES[i] for i in generator.integers(0, 4, 3)),
        scale=float(10 ** generator.uniform(-9, 1.2)),
        odd=float(generator.choice([0.0, 0.02, 0.5])),
        kept=generator.choice([None, 0.05, 0.8]),  # type: ignore[arg-type]
        grid=int(generator.choice([0, 0, 2])),
    )


def sliced() -> TokenBatch:
    """Log-probs of responses, cut out of those of whole sequences."""
    whole = made_up(1, 6, 500, policies=3)
    log_probs = {name: values[1:, 101:] for name, values in whole.log_probs.items()}
    return build(log_probs, mask=whole.mask[1:, 101:])


def transposed() -> TokenBatch:
    """Time first in memory."""
    whole = made_up(2, 300, 7)
    log_probs = {name: values.T for name, values in whole.log_probs.items()}
    return build(log_probs, mask=whole.mask.T)


def some_rows_masked() -> TokenBatch:
    """Every other sequence has no token that counts."""
    whole = made_up(3, 6, 300, odd=0.02)
    keep = torch.arange(6).unsqueeze(1) % 2 == 0
    return replace(whole, mask=whole.mask & keep)


CASES: dict[str, Callable[[], TokenBatch]] = {
    "one token": lambda: made_up(10, 1, 1, kept=None),
    "one column": lambda: made_up(11, 11, 1),
    "one row": lambda: made_up(12, 1, 700),
    "whole blocks": lambda: made_up(13, 8, 512),
    "no mask": lambda: made_up(14, 4, 300, kept=None),
    "nothing counts": lambda: made_up(15, 4, 300, kept=0.0),
    "some rows masked": some_rows_masked,
    "tiny differences": lambda: made_up(16, 4, 300, scale=1e-8, dtypes=(torch.float64,)),
    "identical": lambda: made_up(17, 4, 300, scale=0.0),
    "nan, inf and huge": lambda: made_up(18, 4, 300, odd=0.7),
    "far tokens": lambda: made_up(19, 4, 300, scale=60.0),
    "off-policy": lambda: made_up(20, 4, 300, policies=4, scale=1.0),
    "off-policy, odd": lambda: made_up(21, 4, 300, policies=4, odd=0.3),
    "ties": lambda: made_up(22, 4, 300, scale=1.0, grid=1),
    "ties in long rows": lambda: made_up(23, 3, 4200, scale=0.3, grid=1),
    "bfloat16": lambda: made_up(24, 4, 300, dtypes=(torch.bfloat16,)),
    "float16": lambda: made_up(25, 4, 300, dtypes=(torch.float16,), odd=0.1),
    "float64": lambda: made_up(26, 4, 300, dtypes=(torch.float64,), odd=0.1),
    "mixed dtypes": lambda: made_up(27, 4, 300, policies=4, dtypes=DTYPES),
    "sliced": sliced,
    "transposed": transposed,
    **{f"seed {seed}": lambda seed=seed: seeded(seed) for seed in range(8)},
}
