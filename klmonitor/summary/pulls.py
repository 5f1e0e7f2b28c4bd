"""What a KL term pulls where that takes more than each token's d: a ratio, a return, an advantage.

Beside the passes over all tokens, on the same tokens as the signatures of causes, in plain torch
and float64; nothing waits for the device. With w = rho, t = -d and c the term's coefficient, sums
of w, w t, w t^2, c and c t tell the slope of c / rho on t under the weights rho; their products by
sequence tell its error (`numbers.receipt`).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from klmonitor.pairs import PAIR_INDEX, Pair, sampler
from klmonitor.penalty import Penalty
from klmonitor.summary.batch import TokenBatch, moved
from klmonitor.summary.extras import Extras
from klmonitor.summary.fields import PULL, PULL_GRAM, PULL_TERMS, PULLS
from klmonitor.summary.sequences import Rows
from klmonitor.summary.state import Summary

LARGEST = 80.0
"""Nats: a token's log-ratio is clamped to it, so that its square stays finite."""


def add(
    state: Summary, batch: TokenBatch, pair: Pair, penalty: Penalty, extras: Extras, tokens: int
) -> None:
    """Add what a term pulls of a batch's first tokens to a state, in place.

    Where the return or the ratio is a sequence's and the batch is packed nothing is known.

    Args:
        state: on the batch's device.
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
    with torch.inference_mode():  # a tenth less a call
        names, sums = _sums(batch, pair, penalty, extras, rows, columns)
        if names:
            state.pulls.view(-1).index_add_(0, _places(names, pair.name, batch.device), sums)


def _sums(
    batch: TokenBatch, pair: Pair, penalty: Penalty, extras: Extras, rows: int, columns: int
) -> tuple[tuple[str, ...], Tensor]:
    """Names of `PULLS`, with their sums over the first rows and columns."""
    trained = "policy" if "policy" in batch.log_probs else pair.q
    drew = "old" if "old" in batch.log_probs else sampler(batch.log_probs)
    used = dict.fromkeys((pair.p, pair.q, trained, drew))
    every = torch.stack([batch.log_probs[name][:rows, :columns].double() for name in used])
    held = dict(zip(used, every.unbind(), strict=True))
    d = held[pair.p] - held[pair.q]
    log_ratio = (held[trained] - held[drew]).clamp(max=LARGEST)
    known = d.isfinite() & log_ratio.isfinite()
    if batch.mask is not None:
        known &= batch.mask[:rows, :columns] != 0
    d, log_ratio = torch.where(known, torch.stack([d, log_ratio]), 0.0).unbind()
    prompts = None if batch.prompt_ids is None else batch.prompt_ids[:rows]
    if penalty.leave_one_out and prompts is None:
        return (), d.new_zeros(0)
    c = penalty.coefficient(d, log_ratio, known, prompts if penalty.leave_one_out else None)
    known &= c.isfinite()
    c, t, w = torch.where(known, torch.stack([c, -d, log_ratio.exp()]), 0.0).unbind()
    segments = None if batch.segments is None else batch.segments[:columns]
    at = Rows(
        rows if segments is None else batch.n_sequences,
        torch.arange(columns, device=d.device),
        segments,
    )
    beta = penalty.beta if extras.beta is None else extras.beta
    far, wt, ct, dead = t.abs(), w * t, c * t, known & (c == 0) & (d != 0)
    found = {
        "tokens": known,
        "size": c.abs(),
        "dead": dead,
        "opposite": ct < 0,
        "far": far,
        "lost": far * dead,
    }
    if extras.advantages is not None and penalty.placed == "loss":
        advantages = extras.advantages[:rows, :columns].double()
        found |= _rewarded(beta * c, advantages, w, known & advantages.isfinite(), d)
    terms = (w, wt, wt * t, c, ct)
    by_sequence = at.total(torch.stack([x.double() for x in (*terms, *found.values())]))
    own, count = by_sequence[: len(terms)], by_sequence[len(terms)]
    whole, sequences = by_sequence.sum(-1), (count > 0).sum().unsqueeze(0)
    products = (own @ own.T).flatten().index_select(0, _upper(d.device))
    names = (*PULL_TERMS, *found, "sequences", *PULL_GRAM)
    sums = [whole, sequences, products]
    if extras.beta is not None:
        names = (*names, "weighed", "beta")
        sums += [whole[len(terms), None], beta * whole[len(terms), None]]
    return names, torch.cat(sums)


def _rewarded(
    pull: Tensor, advantages: Tensor, w: Tensor, known: Tensor, d: Tensor
) -> dict[str, Tensor]:
    """The penalty beside the reward: the update descends beta c - A rho."""
    reward = torch.where(known, advantages * w, 0.0)
    rewarded = reward != 0
    pull = pull * rewarded
    size, paid = reward.abs(), pull.abs()
    overruled = rewarded & (pull * reward > 0) & (paid > size)
    return {
        "rewarded": rewarded,
        "reward": size,
        "paid": paid,
        "overruled": overruled,
        "given_up": overruled & (d > 0),
    }


@cache
def _upper(device: torch.device) -> Tensor:
    """Where `PULL_GRAM` is in the products of every term with every other."""
    size = len(PULL_TERMS)
    return moved(torch.triu_indices(size, size).T @ torch.tensor([size, 1]), device)


@cache
def _places(names: tuple[str, ...], pair: str, device: torch.device) -> Tensor:
    """Where sums of these names are in a state's pulls."""
    first = PAIR_INDEX[pair] * len(PULLS)
    return moved(torch.tensor([first + PULL[name] for name in names]), device)
