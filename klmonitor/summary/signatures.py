"""What tells why two policies disagree: sums over whole sequences that no single token shows.

One function for every device, in plain torch, on at most `fields.SAMPLED` tokens a step; beside
the passes over all tokens, not in them. Formulas and what each is for: docs/causes.md. All pairs of
a batch are computed at once, [P, R, C] for R rows of C tokens, in float32 (a signature is good to
1e-5 of its terms), sums over sequences in float64; nothing waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from klmonitor.pairs import PAIR_INDEX, Pair
from klmonitor.summary.batch import TokenBatch
from klmonitor.summary.extras import Extras
from klmonitor.summary.fields import (
    ASIDE,
    BLANK,
    CLAMP,
    HIGH,
    LAGS,
    PLACEHOLDER,
    PROBABILITIES,
    SAMPLED,
    SENTINEL,
    SEQUENCE_RATIO,
    SIGNATURE_RATIOS,
    SIGNATURE_SUMS,
    SURE,
)
from klmonitor.summary.sequences import Rows
from klmonitor.summary.state import Summary

LARGEST_SEQUENCE = 300.0
"""Nats: a sequence's log-ratio is clamped to it, so that the square of its ratio stays finite."""
LARGEST_FLOAT = 80.0
"""Nats: beyond it e^d is no float32 any more."""
SHORTEST_PADDING = 4
"""Tokens of one value at the end of a row that are called padding."""
RARE = 0.05
"""Share of the other tokens that may have the padding's value."""


Sums: TypeAlias = "dict[str, Tensor]"
"""By name of `fields.SIGNATURE_SUMS`: [P], or one for all pairs."""
Ratios: TypeAlias = "dict[str, tuple[Tensor, Tensor]]"
"""By name of `fields.SIGNATURE_RATIOS`: numerator and denominator of each sequence, [P, S]."""


def add(
    state: Summary, batch: TokenBatch, pairs: Sequence[Pair], extras: Extras, taken: int
) -> int:
    """Add the signatures of a batch's first rows to a state, in place.

    Args:
        state: on the batch's device.
        batch: checked log-probs; the pairs' policies are in it.
        pairs: which pairs.
        extras: what else is known.
        taken: tokens that were taken of this step already.

    Returns:
        How many there are now.
    """
    rows, columns = batch.shape
    if batch.segments is None:
        rows = min(rows, (SAMPLED - taken) // max(columns, 1))
    else:  # packed: one row, whose last sequence may have to go
        columns = min(columns, SAMPLED - taken)
    if rows <= 0 or columns <= 0:
        return taken
    for pair, sums in zip(pairs, signatures(batch, pairs, extras, rows, columns), strict=True):
        state.signatures[PAIR_INDEX[pair.name]] += sums
    return taken + rows * columns


def signatures(
    batch: TokenBatch, pairs: Sequence[Pair], extras: Extras, rows: int, columns: int
) -> Tensor:
    """[P, SIGNATURES] sums over the first rows (or packed columns) of a batch."""
    log_probs = {name: x[:rows, :columns] for name, x in batch.log_probs.items()}
    like = next(iter(log_probs.values()))
    segments = None if batch.segments is None else batch.segments[:columns]
    at = Rows(
        rows if segments is None else batch.n_sequences,
        torch.arange(columns, device=like.device),
        segments,
    )
    mask = torch.ones_like(like, dtype=torch.bool)
    if batch.mask is not None:
        mask = batch.mask[:rows, :columns]
    if batch.segments is not None and columns < batch.shape[1]:
        cut = batch.segments[columns]
        mask = mask & (segments != cut)
    q = torch.stack([log_probs[pair.q] for pair in pairs]).float()
    p = torch.stack([log_probs[pair.p] for pair in pairs]).float()
    found, usable = _impossible(q, p, mask)
    found |= _padding(log_probs, mask, at)
    q, p = (torch.where(usable, x, 0.0) for x in (q, p))
    d = p - q
    tokens = at.total(usable)
    found |= _of_sequences(d, tokens, at)
    ratios: Ratios = {}
    if extras.entropy is not None:
        trainer = log_probs["old" if "old" in log_probs else "policy"].float()
        entropy = extras.entropy[:rows, :columns].float()
        known = usable & entropy.isfinite() & (trainer.abs() < SENTINEL)
        surprise = torch.where(known, -trainer - entropy, 0.0)
        ratios["surprise"] = (at.total(surprise), at.total(known))
        found |= _of_entropies(trainer, entropy, known)
    sums = _in_order(found, ratios, tokens)
    k = next((k for k, pair in enumerate(pairs) if pair.q == "rollout"), 0)
    one = slice(k, k + 1)
    sums[one] += _of_mismatch(q[one], d[one], usable[one], tokens[one], at, log_probs, extras)
    return sums


def _of_mismatch(
    q: Tensor,
    d: Tensor,
    usable: Tensor,
    tokens: Tensor,
    at: Rows,
    log_probs: Mapping[str, Tensor],
    extras: Extras,
) -> Tensor:
    """[1, SIGNATURES]: what is asked of trainer against engine, else of the first pair alone."""
    found, ratios = _within(q, q + d, usable, tokens, at)
    found |= _by_probability(q, d, usable)
    ratios |= _ends(d, usable, tokens, at)
    ratios["d"] = (at.total(d), tokens)
    ratios["gap"] = (at.total(torch.expm1(d.clamp(max=LARGEST_FLOAT))), tokens)
    if "ref" in log_probs:
        ref = log_probs["ref"].float()
        known = usable & (ref.abs() < SENTINEL)
        nearer = torch.where(known, (q - ref).square() - d.square(), 0.0)
        ratios["who"] = (at.total(nearer), at.total(known))
    if extras.lag is not None:
        ratios |= _by_lag(extras.lag[: at.count], d, tokens, at)
    return _in_order(found, ratios, tokens)


def _impossible(q: Tensor, p: Tensor, mask: Tensor) -> tuple[Sums, Tensor]:
    """Counts of what is no log-prob, and the tokens that are left: [P, R, C]."""
    if q.is_cpu and _ordinary(q) and _ordinary(p):  # all of this is 0
        return {}, mask.expand_as(q)
    huge_q, huge_p = mask & (q.abs() >= SENTINEL), mask & (p.abs() >= SENTINEL)
    usable = mask & (p - q).isfinite() & ~huge_q & ~huge_p
    counted = {
        "zero_q": usable & (q == 0) & (p < PLACEHOLDER),
        "zero_p": usable & (p == 0) & (q < PLACEHOLDER),
        "blank_q": usable & (q == 0) & (p < BLANK),
        "blank_p": usable & (p == 0) & (q < BLANK),
        "huge_q": huge_q,
        "huge_p": huge_p,
        "high_q": usable & (q > HIGH),
        "high_p": usable & (p > HIGH),
    }
    return {name: which.sum((-2, -1)) for name, which in counted.items()}, usable


def _ordinary(x: Tensor) -> bool:
    """Whether all are finite log-probs below 0 and no sentinel (nan fails both questions)."""
    low, high = x.aminmax()
    return bool(high < 0) and bool(low > -SENTINEL)


def _of_sequences(d: Tensor, tokens: Tensor, at: Rows) -> Sums:
    """Counts of sides; the sequences' ratios exp(sum d); their largest token k3."""
    seen, of_sequence, far = tokens > 0, at.total(d), math.log(SEQUENCE_RATIO)
    ratio = of_sequence.clamp(-LARGEST_SEQUENCE, LARGEST_SEQUENCE)
    ratio = torch.where(seen, ratio, -math.inf)
    ends = torch.stack([-at.most(-d).double(), at.most(d).double()])  # k3 is convex
    k3 = torch.expm1(ends.clamp(max=CLAMP)) - ends
    return {
        "tokens": tokens.sum(-1),
        "sequences": seen.sum(-1),
        "up": (d > ASIDE).sum((-2, -1)),
        "down": (d < -ASIDE).sum((-2, -1)),
        "ratio_above": (of_sequence > far).sum(-1),
        "ratio_below": (of_sequence < -far).sum(-1),
        "ratio": ratio.exp().sum(-1),
        "ratio2": (2 * ratio).exp().sum(-1),
        "largest": torch.where(seen, k3.amax(0), 0.0).sum(-1),
    }


def _by_probability(q: Tensor, d: Tensor, usable: Tensor) -> Sums:
    """Mean |d| by bins of q(x), beside 1 - q(x) (arXiv 2512.23087: mismatch grows as 1 - p)."""
    probability = q.clamp(max=0.0).exp()
    counted = usable.float()
    features = torch.stack([counted, d.abs(), counted - probability * counted], -1)
    above = [probability >= edge for edge in PROBABILITIES]
    weights = torch.stack([counted, *(which * counted for which in above)], -2)
    upward = (weights @ features).double().sum(1)  # [P, bins, 3]: from each edge on, row by row
    inside = upward - torch.nn.functional.pad(upward[:, 1:], (0, 0, 0, 1))
    return {
        f"{name}_{i}": inside[:, i, k]
        for k, name in enumerate(("n", "abs", "left"))
        for i in range(len(PROBABILITIES) + 1)
    }


def _within(q: Tensor, p: Tensor, usable: Tensor, tokens: Tensor, at: Rows) -> tuple[Sums, Ratios]:
    """Products of log q and log p less their means in the sequence, now and one position on."""
    size = tokens.clamp(min=1)

    def centred(x: Tensor) -> Tensor:
        return torch.where(usable, x - at.spread((at.total(x) / size).float()), 0.0)

    def crossed(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """x(t) y(t - 1) and x(t) y(t + 1), where both are of one sequence; [..., C - 1]."""
        before, after = x[..., 1:] * y[..., :-1], x[..., :-1] * y[..., 1:]
        if (together := at.together()) is None:
            return before, after
        return torch.where(together, before, 0.0), torch.where(together, after, 0.0)

    def difference(before: Tensor, after: Tensor) -> Tensor:
        return at.total(torch.nn.functional.pad(before - after, (1, 0)))

    q, p = centred(q), centred(p)
    before, after = crossed(q, p)
    qq, pp, qp = (at.total(x) for x in (q * q, p * p, q * p))
    found = {name: x.sum(-1) for name, x in {"qq": qq, "pp": pp, "qp": qp}.items()}
    found |= {"before": before.sum(-1).double().sum(-1), "after": after.sum(-1).double().sum(-1)}
    bend = centred((p * p - q * q) / 2)  # d (q + p) / 2: large where one of them is sharper
    ratios = {
        "shift": (difference(before, after), (qq + pp) / 2),
        "slope": ((pp - qq) / 2, (qq + pp + 2 * qp) / 4),
        "context": (difference(*crossed(bend, p)), at.total(bend * bend)),
    }
    return found, ratios


def _ends(d: Tensor, usable: Tensor, tokens: Tensor, at: Rows) -> Ratios:
    """|d| of the first and the last token of each sequence, and of the others."""
    size, end = d.abs(), at.columns.numel() - 1
    last = at.most(torch.where(usable, at.columns, -1))
    first = end - at.most(torch.where(usable, end - at.columns, -1))
    first = torch.where(tokens > 0, first, -1)
    last = torch.where(tokens > 1, last, -1)
    of_first, of_last = at.at(size, first), at.at(size, last)
    return {
        "first": (of_first, (first >= 0).double()),
        "last": (of_last, (last >= 0).double()),
        "middle": (at.total(size) - of_first - of_last, (tokens - 2).clamp(min=0)),
    }


def _of_entropies(trainer: Tensor, entropy: Tensor, known: Tensor) -> Sums:
    """Their sum; and where one token is nearly sure, how often another should come, and did."""
    probability, sure = trainer.exp(), known & (entropy <= SURE)
    likeliest = probability >= 0.5
    return {
        "entropic": known.sum((-2, -1)),
        "entropy": torch.where(known, entropy, 0.0).sum(-1).double().sum(-1),
        "sure": torch.where(sure & likeliest, 1 - probability, 0.0).sum(-1).double().sum(-1),
        "sure_other": (sure & ~likeliest).sum((-2, -1)),
    }


def _by_lag(lag: Tensor, d: Tensor, tokens: Tensor, at: Rows) -> Ratios:
    """k3 of the sequences of each lag."""
    d = d.double()
    k3 = at.total(torch.expm1(d.clamp(max=CLAMP)) - d)
    bounded = lag.clamp(0, len(LAGS) - 1)
    of_lags = {name: bounded == i for i, name in enumerate(LAGS)}
    return {
        name: (torch.where(which, k3, 0.0), torch.where(which, tokens, 0.0))
        for name, which in of_lags.items()
    }


def _padding(log_probs: Mapping[str, Tensor], mask: Tensor, at: Rows) -> Sums:
    """Stretches of one value under all policies that reach the row's end, in what is counted."""
    last = at.most(torch.where(mask, at.columns, -1))
    same = mask
    for x in log_probs.values():
        same = same & (x == at.spread(at.at(x, last).to(x.dtype)))
    broken = at.most(torch.where(mask & ~same, at.columns, -1))
    run = same & (at.columns > at.spread(broken))
    lengths, alike, counted = at.total(run), at.total(same), at.total(mask)
    others = counted - lengths
    padded = (lengths >= SHORTEST_PADDING) & (others > 0) & (alike - lengths <= RARE * others)
    return {
        "padded": torch.where(padded, lengths, 0.0).sum(),
        "padded_rows": padded.sum(),
        "rows": (last >= 0).sum(),
    }


def _in_order(found: Sums, ratios: Ratios, like: Tensor) -> Tensor:
    """[P, SIGNATURES]; what was not computed is 0."""
    zero = like.new_zeros(like.shape[0])
    sums = [found.get(name, zero).double().expand_as(zero) for name in SIGNATURE_SUMS]
    nothing = like.new_zeros(1), like.new_zeros(1)
    pairs = [ratios.get(name, nothing) for name in SIGNATURE_RATIOS]
    a, b = (torch.stack([pair[i].expand_as(like) for pair in pairs]) for i in (0, 1))  # [K, P, S]
    products = torch.stack([x.sum(-1) for x in (a, b, a * a, a * b, b * b)], -1)  # [K, P, 5]
    return torch.cat([torch.stack(sums, -1), products.transpose(0, 1).flatten(1)], -1)
