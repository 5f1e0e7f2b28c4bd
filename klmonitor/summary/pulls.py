"""What a KL term pulls where that takes more than each token's d: a ratio, a return, an advantage.

Beside the passes over all tokens, on the same tokens as the signatures of causes, in plain torch
and float64; nothing waits for the device. With w = rho, t = -d and c the term's coefficient, sums
of w, w t, w t^2, c and c t tell the slope of c / rho on t under the weights rho; their products by
sequence tell its error (`numbers.receipt`).
"""

from __future__ import annotations

from functools import cache
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from klmonitor.pairs import PAIR_INDEX, Pair, sampler
from klmonitor.penalty import Penalty
from klmonitor.summary.batch import TokenBatch, moved
from klmonitor.summary.extras import Extras
from klmonitor.summary.fields import PULL, PULL_TERMS, PULLS
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
    names, by_sequence = _terms(batch, pair, penalty, extras, rows, columns)
    if names:
        taken, places = _places(names, pair.name, batch.device)
        products = (by_sequence @ by_sequence.T).flatten()
        state.pulls.view(-1).index_add_(0, places, products.index_select(0, taken))


def _terms(
    batch: TokenBatch, pair: Pair, penalty: Penalty, extras: Extras, rows: int, columns: int
) -> tuple[tuple[str, ...], Tensor]:
    """Names, ``sequences`` among them, with their sums over each of the first sequences, [n, S]."""
    whole = (rows, columns) == batch.shape

    def part(x: Tensor) -> Tensor:
        return x if whole else x[:rows, :columns]

    trained = "policy" if "policy" in batch.log_probs else pair.q
    drew = "old" if "old" in batch.log_probs else sampler(batch.log_probs)
    used = dict.fromkeys((pair.p, pair.q, trained, drew))
    every = torch.stack([part(batch.log_probs[name]) for name in used]).double()
    held = dict(zip(used, every.unbind(), strict=True))
    d = held[pair.p] - held[pair.q]
    log_ratio = (held[trained] - held[drew]).clamp(max=LARGEST)
    known = (d + log_ratio).isfinite()
    if batch.mask is not None:
        known &= part(batch.mask)
    d, log_ratio = torch.where(known, torch.stack([d, log_ratio]), 0.0).unbind()
    prompts = None if batch.prompt_ids is None else batch.prompt_ids[:rows]
    if penalty.leave_one_out and prompts is None:
        return (), d
    c = penalty.coefficient(d, log_ratio, known, prompts if penalty.leave_one_out else None)
    known &= c.isfinite()
    c, t, w = torch.where(known, torch.stack([c, -d, log_ratio.exp()]), 0.0).unbind()
    far, wt, ct, dead = t.abs(), w * t, c * t, known & (c == 0) & (d != 0)
    terms = {
        **dict(zip(PULL_TERMS, (w, wt, wt * t, c, ct), strict=True)),
        "tokens": known,
        "size": c.abs(),
        "dead": dead,
        "opposite": ct < 0,
        "far": far,
        "lost": far * dead,
    }
    beta = penalty.beta if extras.beta is None else extras.beta
    if extras.beta is not None:
        terms |= {"weighed": known, "beta": beta * known.double()}
    if extras.advantages is not None and penalty.placed == "loss":
        advantages = part(extras.advantages).double()
        terms |= _rewarded(beta * c, advantages, w, known & advantages.isfinite(), d)
    sums = Rows.of(batch, rows, columns).total(torch.stack(list(terms.values())))
    sequences = sums[len(PULL_TERMS)] > 0  # those with tokens
    return (*terms, "sequences"), torch.cat([sums, sequences.unsqueeze(0)])


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
def _places(names: tuple[str, ...], pair: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which products over sequences are what of a state's pulls: a sum is one with `sequences`."""
    row = {name: i for i, name in enumerate(names)}
    found = {name: (name, "sequences") for name in names}
    found |= {f"{a}.{b}": (a, b) for a, b in combinations_with_replacement(PULL_TERMS, 2)}
    taken = [row[a] * len(names) + row[b] for a, b in found.values()]
    places = [PAIR_INDEX[pair] * len(PULLS) + PULL[name] for name in found]
    return moved(torch.tensor(taken), device), moved(torch.tensor(places), device)
