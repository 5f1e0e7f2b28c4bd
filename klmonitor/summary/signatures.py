"""What tells why two policies disagree: sums over whole sequences that no single token shows.

On at most `fields.SAMPLED` tokens a step; beside the passes over all tokens, not in them. Formulas
and what each is for: docs/causes.md. On the CPU they are `signature_pass`'s where that is there and
agrees with `signature_sums`, which does the work elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from klmonitor.pairs import Pair
from klmonitor.summary.batch import TokenBatch
from klmonitor.summary.extras import Extras
from klmonitor.summary.fields import SAMPLED, SummaryConfig
from klmonitor.summary.passes import TOKENS, Kernel, check_alike, made_up, undo_of
from klmonitor.summary.signature_sums import add_plain
from klmonitor.summary.state import Summary

TRIAL_SHAPE = (5, 60)
"""Sequences and tokens by which a kernel is tried: few, so that one token more is seen."""
ODD = (0.0, 1.0, -2e4, torch.inf, -torch.inf, torch.nan)
"""Values in the trial that are no log-probs."""


def add(
    state: Summary, batch: TokenBatch, pairs: Sequence[Pair], extras: Extras, taken: int
) -> int:
    """Add the signatures of a batch's first rows to a state, in place.

    Args:
        state: what is added to.
        batch: checked log-probs; the pairs' policies are in it.
        pairs: which pairs.
        extras: what else is known.
        taken: tokens that were taken of this step already.

    Returns:
        How many there are now.
    """
    rows, columns = batch.shape
    if batch.segments is None:
        if not taken:  # one row that is longer than all that is taken
            columns = min(columns, SAMPLED)
        rows = min(rows, (SAMPLED - taken) // max(columns, 1))
    else:  # packed: one row, whose last sequence may have to go
        columns = min(columns, SAMPLED - taken)
    if rows <= 0 or columns <= 0:
        return taken
    one = next((k for k, pair in enumerate(pairs) if pair.q == "rollout"), 0)
    some = (batch, pairs, one, extras, rows, columns)
    if not KERNEL.add(state, *some):
        add_plain(state, *some)
    return taken + rows * columns


def compare(add: Callable[..., None], batch: TokenBatch, pairs: Sequence[Pair]) -> None:
    """Compare what a pass and the plain one make of tokens that are made up after a batch's.

    Raises:
        ArithmeticError: sums differ.
    """
    trial = made_up(batch, TRIAL_SHAPE, ODD)
    for values in trial.log_probs.values():
        values[-1, TRIAL_SHAPE[1] // 2 :] = -0.75  # padding
    entropy = trial.log_probs[pairs[0].p].float().abs()  # some is no number, some is below `SURE`
    extras = Extras(entropy, lag=torch.arange(TRIAL_SHAPE[0], device="cpu"))
    found, expected = (Summary.empty(SummaryConfig(prompt_buckets=0)) for _ in range(2))
    for one in range(len(pairs)):
        for state, some in ((found, add), (expected, add_plain)):
            some(state, trial, pairs, one, extras, *TRIAL_SHAPE)
    terms = TRIAL_SHAPE[0] * TRIAL_SHAPE[1]  # of some nats each
    check_alike(found, expected, "signatures", terms)


KERNEL = Kernel(
    "signatures' Numba",
    "klmonitor.summary.signature_pass",
    TOKENS.loader,
    compare,
    undo_of("signatures"),
)
"""What is compiled."""
