"""Ratios that no clipping bounds, on the CPU, compiled by Numba: `numba_unclipped` on a batch."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from torch import Tensor

from klmonitor.pairs import Pair
from klmonitor.summary.arrays import flat
from klmonitor.summary.batch import TokenBatch
from klmonitor.summary.numba_pass import all_narrow as fits
from klmonitor.summary.numba_unclipped import add_unclipped
from klmonitor.summary.state import Summary
from klmonitor.summary.unclipped_sums import PLACES

__all__ = ["add", "fits"]


def add(state: Summary, batch: TokenBatch, pairs: Collection[Pair], advantages: Tensor) -> None:
    """Add what enters the loss of a micro-batch to a state, in place.

    Arguments as for `unclipped_sums.add_plain`.
    """
    add_unclipped(
        *[batch.arrays.narrow[name] for name in ("policy", "old")],
        batch.arrays.mask,
        flat(advantages).astype(np.float64, copy=False),
        state.arrays["signatures"].reshape(-1)[PLACES],
    )
