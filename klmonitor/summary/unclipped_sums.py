"""Ratios that no clipping bounds, summed in arrays, as in `pull_sums`."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
from torch import Tensor

from klmonitor.pairs import PAIR_INDEX, Pair
from klmonitor.summary.batch import TokenBatch
from klmonitor.summary.fields import FAR_RATIO, LARGEST_SEQUENCE, SIGNATURE, SIGNATURES
from klmonitor.summary.pull_sums import array_of, floats_of
from klmonitor.summary.state import Summary

PAIR = "old_policy"
NAMES = ("weighed", "loss", "unclipped", "unclipped_loss", "unclipped_d")
"""Of `fields.SIGNATURE_SUMS`, one behind the other."""
FIRST = PAIR_INDEX[PAIR] * len(SIGNATURES) + SIGNATURE[NAMES[0]]
PLACES = slice(FIRST, FIRST + len(NAMES))
"""Of these in a state's signatures."""
FAR = math.log(FAR_RATIO)


def add_plain(
    state: Summary, batch: TokenBatch, pairs: Collection[Pair], advantages: Tensor
) -> None:
    """Add what enters the loss of a micro-batch to a state, in place.

    Args:
        state: what is added to.
        batch: checked log-probs, of policy and old.
        pairs: which pairs are summed, `PAIR` among them.
        advantages: [B, T] (or [1, N] packed).
    """
    policy, old = (floats_of(batch.log_probs[name]) for name in ("policy", "old"))
    weight = floats_of(advantages)
    with np.errstate(all="ignore"):
        d = policy - old
        known = np.isfinite(d + weight)
        if batch.mask is not None:
            known &= array_of(batch.mask)
        weight, d = np.where(known, weight, 0.0), np.where(known, d, 0.0).clip(max=LARGEST_SEQUENCE)
        far = (weight < 0) & (d >= FAR)
        enters = abs(weight) * np.exp(np.where(weight > 0, d.clip(max=FAR), d))
        sums = np.array([known, enters, far, enters * far, d * far]).sum((-2, -1))
    state.arrays["signatures"].reshape(-1)[PLACES] += sums
