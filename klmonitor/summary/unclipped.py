"""Ratios that no clipping bounds: sums over tokens whose advantage is negative.

The clipped surrogate min(r A, clip(r) A) of PPO follows r = policy / old without a bound where the
advantage A is negative: there one token of a huge r is the whole step's loss. Sums over all tokens
of a micro-batch: by `unclipped_pass`, where that is there and agrees with `unclipped_sums`, which
does the work elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from klmonitor.pairs import Pair
from klmonitor.summary.batch import TokenBatch
from klmonitor.summary.fields import SummaryConfig
from klmonitor.summary.passes import TOKENS, Kernel, check_alike, made_up, undo_of
from klmonitor.summary.state import Summary
from klmonitor.summary.unclipped_sums import PAIR, add_plain

TRIAL_SHAPE = (4, 60)
"""Sequences and tokens by which a kernel is tried."""


def add(
    state: Summary, batch: TokenBatch, pairs: Sequence[Pair], advantages: Tensor | None
) -> None:
    """Add what enters the loss of a micro-batch to a state, in place.

    Args:
        state: what is added to.
        batch: checked log-probs.
        pairs: which pairs are summed.
        advantages: [B, T] (or [1, N] packed); None: unknown.
    """
    if advantages is None or PAIR not in {pair.name for pair in pairs}:
        return
    some = (batch, pairs, advantages)
    if not KERNEL.add(state, *some):
        add_plain(state, *some)


def compare(add: Callable[..., None], batch: TokenBatch, pairs: Sequence[Pair]) -> None:
    """Compare what a pass and the plain one make of tokens that are made up after a batch's.

    Raises:
        ArithmeticError: sums differ.
    """
    trial = made_up(batch, TRIAL_SHAPE)
    advantages = trial.log_probs["old"] + 1.0
    found, expected = (Summary.empty(SummaryConfig(prompt_buckets=0)) for _ in range(2))
    for state, some in ((found, add), (expected, add_plain)):
        some(state, trial, pairs, advantages)
    check_alike(found, expected, "signatures", advantages.numel())


KERNEL = Kernel(
    "unclipped ratios' Numba",
    "klmonitor.summary.unclipped_pass",
    TOKENS.loader,
    compare,
    undo_of("signatures"),
)
"""What is compiled."""
