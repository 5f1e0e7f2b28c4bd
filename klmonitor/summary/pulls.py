"""What a KL term pulls where that takes more than each token's d: a ratio, a return, an advantage.

Beside the passes over all tokens, on the same tokens as the signatures of causes, in plain torch
and float64; nothing waits for the device. With w = rho, t = -d and c the term's coefficient, sums
of w, w t, w t^2, c and c t tell the slope of c / rho on t under the weights rho; their products by
sequence tell its error (`numbers.receipt`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from klmonitor.pairs import PAIR_INDEX, Pair, sampler
from klmonitor.penalty import Penalty
from klmonitor.summary.batch import TokenBatch
from klmonitor.summary.extras import Extras
from klmonitor.summary.fields import AUDIT_SUMS, PULL_GRAM, PULL_SUMS, PULL_TERMS, PULLS
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
    state.pulls[PAIR_INDEX[pair.name]] += _sums(batch, pair, penalty, extras, rows, columns)


def _sums(
    batch: TokenBatch, pair: Pair, penalty: Penalty, extras: Extras, rows: int, columns: int
) -> Tensor:
    """[PULLS] sums over the first rows and columns."""
    held = {name: x[:rows, :columns].double() for name, x in batch.log_probs.items()}
    d = held[pair.p] - held[pair.q]
    trained = "policy" if "policy" in held else pair.q
    drew = "old" if "old" in held else sampler(held)
    log_ratio = (held[trained] - held[drew]).clamp(max=LARGEST)
    known = d.isfinite() & log_ratio.isfinite()
    if batch.mask is not None:
        known &= batch.mask[:rows, :columns] != 0
    d, log_ratio = (torch.where(known, x, 0.0) for x in (d, log_ratio))
    prompts = None if batch.prompt_ids is None else batch.prompt_ids[:rows]
    if penalty.leave_one_out and prompts is None:
        return d.new_zeros(len(PULLS))
    c = penalty.coefficient(d, log_ratio, known, prompts if penalty.leave_one_out else None)
    known &= c.isfinite()
    c, t, w = (torch.where(known, x, 0.0) for x in (c, -d, log_ratio.exp()))
    segments = None if batch.segments is None else batch.segments[:columns]
    at = Rows(
        rows if segments is None else batch.n_sequences,
        torch.arange(columns, device=d.device),
        segments,
    )
    beta = penalty.beta if extras.beta is None else extras.beta
    counted = known.double().sum()
    dead = known & (c == 0) & (d != 0)
    found = {
        "tokens": counted,
        "sequences": (at.total(known.double()) > 0).sum(),
        "size": c.abs().sum(),
        "dead": dead.sum(),
        "opposite": (c * t < 0).sum(),
        "far": t.abs().sum(),
        "lost": torch.where(dead, t.abs(), 0.0).sum(),
    }
    if extras.beta is not None:
        found |= {"weighed": counted, "beta": beta * counted}
    if extras.advantages is not None and penalty.placed == "loss":
        advantages = extras.advantages[:rows, :columns].double()
        found |= _rewarded(beta * c, advantages, w, known & advantages.isfinite(), d)
    terms = torch.stack([at.total(x) for x in (w, w * t, w * t * t, c, c * t)])
    gram = dict(zip(PULL_TERMS, terms, strict=True))
    pairs = (name.split(".") for name in PULL_GRAM)
    products = torch.stack([(gram[a] * gram[b]).sum() for a, b in pairs])
    zero = d.new_zeros(())
    sums = torch.stack([found.get(name, zero).double() for name in PULL_SUMS])
    return torch.cat([sums, terms.sum(-1), products, d.new_zeros(len(AUDIT_SUMS))])


def _rewarded(
    pull: Tensor, advantages: Tensor, w: Tensor, known: Tensor, d: Tensor
) -> dict[str, Tensor]:
    """The penalty beside the reward: the update descends beta c - A rho."""
    reward = torch.where(known, advantages * w, 0.0)
    rewarded = reward != 0
    pull = torch.where(rewarded, pull, 0.0)
    overruled = rewarded & (pull * reward > 0) & (pull.abs() > reward.abs())
    return {
        "rewarded": rewarded.sum(),
        "reward": reward.abs().sum(),
        "paid": pull.abs().sum(),
        "overruled": overruled.sum(),
        "given_up": (overruled & (d > 0)).sum(),
    }
