"""Ratios that no clipping bounds, summed in arrays, on every device, as in `pull_sums`."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
from torch import Tensor

from klmonitor.pairs import PAIR_INDEX, Pair
from klmonitor.penalty import namespace
from klmonitor.summary.batch import TokenBatch
from klmonitor.summary.fields import FAR_RATIO, LARGEST_SEQUENCE, SIGNATURE, SIGNATURES
from klmonitor.summary.pull_sums import array_of, floats_of, stacked
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
        state: on the batch's device.
        batch: checked log-probs, of policy and old.
        pairs: which pairs are summed, `PAIR` among them.
        advantages: [B, T] (or [1, N] packed).
    """
    policy, old = (floats_of(batch.log_probs[name]) for name in ("policy", "old"))
    weight, xp = floats_of(advantages), namespace(policy)
    with np.errstate(all="ignore"):
        d = policy - old
        known = xp.isfinite(d + weight)
        if batch.mask is not None:
            known &= array_of(batch.mask)
        weight, d = xp.where(known, weight, 0.0), xp.where(known, d, 0.0).clip(max=LARGEST_SEQUENCE)
        far = (weight < 0) & (d >= FAR)
        enters = abs(weight) * xp.exp(xp.where(weight > 0, d.clip(max=FAR), d))
        sums = stacked([known, enters, far, enters * far, d * far]).sum((-2, -1))
    if isinstance(sums, np.ndarray):
        state.arrays["signatures"].reshape(-1)[PLACES] += sums
    else:
        state.signatures.view(-1)[PLACES] += sums
