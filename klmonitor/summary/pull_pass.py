"""What a KL term pulls, on the CPU, compiled by Numba: `numba_pulls` on a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from klmonitor.pairs import PAIR_INDEX, Pair
from klmonitor.penalty import Penalty
from klmonitor.summary.arrays import flat
from klmonitor.summary.batch import TokenBatch
from klmonitor.summary.extras import Extras
from klmonitor.summary.numba_pass import all_narrow as fits
from klmonitor.summary.numba_pulls import ESTIMATORS, RATIOS, add_pulls
from klmonitor.summary.pull_sums import compared
from klmonitor.summary.state import Summary

__all__ = ["add", "fits"]
NO_ADVANTAGES = np.empty(0)


def add(
    state: Summary, batch: TokenBatch, pairs: Sequence[Pair], penalty: Penalty, extras: Extras
) -> None:
    """Add what a term pulls of a batch to a state, in place.

    Args:
        state: on the CPU.
        batch: checked log-probs; the pair's policies are in it.
        pairs: one pair.
        penalty: the term on it, each of whose tokens has a c of its own.
        extras: advantages, and the weight where it was observed.
    """
    (pair,) = pairs
    trained, drew = compared(batch, pair)
    advantages = extras.advantages if penalty.placed == "loss" else None
    arrays = batch.arrays
    add_pulls(
        *[arrays.narrow[name] for name in (pair.q, pair.p, trained, drew)],
        *(arrays.mask, batch.shape[1], arrays.offsets),
        NO_ADVANTAGES if advantages is None else flat(advantages).astype(np.float64, copy=False),
        _term(penalty),
        penalty.beta if extras.beta is None else extras.beta,
        extras.beta is not None,
        state.arrays["pulls"][PAIR_INDEX[pair.name]],
    )


@cache
def _term(penalty: Penalty) -> tuple[int, bool, int, float, float, bool]:
    """A term as the kernel takes it."""
    return (
        ESTIMATORS.index(penalty.estimator),
        penalty.placed == "reward",
        RATIOS.index(penalty.ratio),
        math.inf if penalty.clamp is None else float(penalty.clamp),
        math.inf if penalty.clamp_d is None else float(penalty.clamp_d),
        penalty.straight_through,
    )
