"""Ratios that no clipping bounds: sums over tokens whose advantage is negative.

The clipped surrogate min(r A, clip(r) A) of PPO follows r = policy / old without a bound where the
advantage A is negative: there one token of a huge r is the whole step's loss. Sums alone, over all
tokens of a micro-batch, in plain torch; nothing waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from klmonitor.pairs import PAIR_INDEX, Pair
from klmonitor.summary.batch import TokenBatch
from klmonitor.summary.fields import FAR_RATIO, SIGNATURE, SIGNATURES
from klmonitor.summary.state import Summary

PAIR = "old_policy"
NAMES = ("weighed", "loss", "unclipped", "unclipped_loss", "unclipped_d")
"""Of `fields.SIGNATURE_SUMS`, one behind the other."""
FIRST = PAIR_INDEX[PAIR] * len(SIGNATURES) + SIGNATURE[NAMES[0]]
PLACES = slice(FIRST, FIRST + len(NAMES))
"""Of these in a state's signatures."""
FAR = math.log(FAR_RATIO)
LARGEST = 300.0
"""Nats: a token's log-ratio is clamped to it, so that the sums stay finite."""


def add(
    state: Summary, batch: TokenBatch, pairs: Collection[Pair], advantages: Tensor | None
) -> None:
    """Add what enters the loss of a micro-batch to a state, in place.

    Args:
        state: on the batch's device.
        batch: checked log-probs.
        pairs: which pairs are summed.
        advantages: [B, T] (or [1, N] packed); None: unknown.
    """
    if advantages is None or PAIR not in {pair.name for pair in pairs}:
        return
    d = (batch.log_probs["policy"] - batch.log_probs["old"]).double()
    known = (d + advantages).isfinite()
    if batch.mask is not None:
        known &= batch.mask
    advantage = torch.where(known, advantages, 0.0)
    d = torch.where(known, d, 0.0).clamp(max=LARGEST)
    far = (advantage < 0) & (d >= FAR)
    enters = advantage.abs() * torch.where(advantage > 0, d.clamp(max=FAR), d).exp()
    terms = torch.stack([known, enters, far, enters * far, d * far])
    state.signatures.view(-1)[PLACES] += terms.sum((-2, -1))
