"""What a KL term pulls where that takes more than each token's d: a ratio, a return, an advantage.

Beside the passes over all tokens, on the same tokens as the signatures of causes. With w = rho,
t = -d and c the term's coefficient, sums of w, w t, w t^2, c and c t tell the slope of c / rho on t
under the weights rho; their products by sequence tell its error (`numbers.receipt`). On the CPU
they are `pull_pass`'s where each token's c is its own, that is there and agrees with `pull_sums`,
which does the work elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from klmonitor.pairs import Pair
from klmonitor.penalty import Penalty
from klmonitor.summary.batch import TokenBatch
from klmonitor.summary.extras import Extras
from klmonitor.summary.fields import SummaryConfig
from klmonitor.summary.passes import TOKENS, Kernel, check_alike, made_up, undo_of
from klmonitor.summary.pull_sums import add_plain
from klmonitor.summary.state import Summary

TRIAL_SHAPE = (4, 40)
"""Sequences and tokens by which a kernel is tried."""
ODD = (0.0, -4.0, -torch.inf, torch.nan)
TRIED = tuple(
    Penalty(estimator, placed, ratio, clamp, beta=0.3, clamp_d=clamp_d, straight_through=straight)
    for estimator in ("k1", "k2", "k3", "abs", "square")
    for placed, ratio, straight in (
        ("loss", None, False),
        ("loss", "differentiated", True),
        ("loss", "differentiated", False),
        ("reward", "detached", False),
    )
    for clamp, clamp_d in ((None, None), (0.5, 0.8))
)
"""Terms that it is tried with."""


def add(
    state: Summary, batch: TokenBatch, pair: Pair, penalty: Penalty, extras: Extras, tokens: int
) -> None:
    """Add what a term pulls of a batch's first tokens to a state, in place.

    Where the return or the ratio is a sequence's and the batch is packed nothing is known.

    Args:
        state: what is added to.
        batch: checked log-probs; the pair's policies are in it.
        pair: which pair.
        penalty: the term on it.
        extras: advantages, and the weight where it was observed.
        tokens: how many are looked at, whole rows.
    """
    whole = penalty.returns != "token" or penalty.level != "token"
    if not tokens or (whole and batch.segments is not None):
        return
    columns = tokens if batch.segments is not None else batch.shape[1]
    rows = 1 if batch.segments is not None else tokens // columns
    if extras.advantages is not None and (rows, columns) != batch.shape:
        extras = replace(extras, advantages=extras.advantages[:rows, :columns])
    some = (batch.first(rows, columns), (pair,), penalty, extras)
    if whole or not KERNEL.add(state, *some):
        add_plain(state, *some)


def compare(add: Callable[..., None], batch: TokenBatch, pairs: Sequence[Pair]) -> None:
    """Compare what a pass and the plain one make of tokens that are made up after a batch's.

    Raises:
        ArithmeticError: sums differ.
    """
    trial = made_up(batch, TRIAL_SHAPE, ODD)
    extras = Extras(advantages=trial.log_probs[pairs[0].q] + 1.0)
    for penalty in TRIED:
        found, expected = (Summary.empty(SummaryConfig(prompt_buckets=0)) for _ in range(2))
        for state, some in ((found, add), (expected, add_plain)):
            some(state, trial, pairs, penalty, extras)
        terms = TRIAL_SHAPE[0] * TRIAL_SHAPE[1]  # of some nats each
        check_alike(found, expected, "pulls", terms)


KERNEL = Kernel(
    "pulls' Numba", "klmonitor.summary.pull_pass", TOKENS.loader, compare, undo_of("pulls")
)
"""What is compiled."""
