"""What tells why two policies disagree: sums over whole sequences that no single token shows.

One function for every device, in plain torch, on at most `fields.SAMPLED` tokens a step; beside
the passes over all tokens, not in them. Formulas and what each is for: docs/causes.md. All pairs of
a batch are computed at once, [P, R, C] for R rows of C tokens, in float32 (a signature is good to
1e-5 of its terms), sums over sequences in float64; nothing waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor

from klmonitor.pairs import PAIR_INDEX, Pair
from klmonitor.summary.batch import TokenBatch, moved
from klmonitor.summary.extras import Extras
from klmonitor.summary.fields import (
    ASIDE,
    BLANK,
    CERTAIN,
    CLAMP,
    END_OFF,
    HIGH,
    LAGS,
    PLACEHOLDER,
    PROBABILITIES,
    RATIO_SUMS,
    SAMPLED,
    SENTINEL,
    SEQUENCE_RATIO,
    SIGNATURE_RATIOS,
    SIGNATURE_SUMS,
    SIGNATURES,
    SURE,
)
from klmonitor.summary.sequences import Rows
from klmonitor.summary.state import Summary

LARGEST_SEQUENCE = 300.0
"""Nats: a sequence's log-ratio is clamped to it, so that the square of its ratio stays finite."""
LARGEST_FLOAT = 80.0
"""Nats: beyond it e^d is no float32 any more."""
SHORTEST_PADDING, SHORTEST_CERTAIN = 4, 8
"""Tokens of one value at the end of a row that are called padding; and where the value is near 0,
which the last tokens of a template have too."""
RARE = 0.05
"""Share of the other tokens that may have the padding's value."""


BINS = "bins"
BINNED = tuple(f"{x}_{i}" for x in ("n", "abs", "left") for i in range(len(PROBABILITIES) + 1))
"""Names that come together, in this order, [P, 15]."""
Sums: TypeAlias = "dict[str, Tensor]"
"""By name of `fields.SIGNATURE_SUMS`: [P], or one for all pairs; `BINS`."""
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
        if not taken:  # one row that is longer than all that is taken
            columns = min(columns, SAMPLED)
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
    counted, of_ends = _ends(d, usable, tokens, at)
    found |= counted
    ratios |= of_ends
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
    far_q, far_p = mask & (q.abs() >= SENTINEL), mask & (p.abs() >= SENTINEL)
    usable = mask & (p - q).isfinite() & ~far_q & ~far_p
    huge_q, huge_p = far_q & q.isfinite(), far_p & p.isfinite()
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
    ratio = torch.where(seen, ratio, -math.inf).exp()
    low, high = at.most(torch.cat([-d, d])).double().chunk(2)
    ends = torch.stack([-low, high])  # k3 is convex
    k3 = torch.where(seen, (torch.expm1(ends.clamp(max=CLAMP)) - ends).amax(0), 0.0)
    by_sequence = torch.stack(
        [tokens, seen, of_sequence > far, of_sequence < -far, ratio, ratio * ratio, k3]
    ).sum(-1)
    names = ("tokens", "sequences", "ratio_above", "ratio_below", "ratio", "ratio2", "largest")
    return {
        "up": (d > ASIDE).sum((-2, -1)),
        "down": (d < -ASIDE).sum((-2, -1)),
        **dict(zip(names, by_sequence, strict=True)),
    }


def _by_probability(q: Tensor, d: Tensor, usable: Tensor) -> Sums:
    """Mean |d| by bins of q(x), beside 1 - q(x) (arXiv 2512.23087: mismatch grows as 1 - p)."""
    probability = q.clamp(max=0.0).exp()
    counted = usable.float()
    features = torch.stack([counted, d.abs(), counted - probability * counted], -2)
    above = [(probability >= edge) * counted for edge in PROBABILITIES]
    weights = torch.stack([counted, *above], -2)
    by_row = weights.double() @ features.double().transpose(-1, -2)
    upward = by_row.sum(1)  # [P, bins, 3]: from each edge on
    inside = upward - torch.nn.functional.pad(upward[:, 1:], (0, 0, 0, 1))
    return {BINS: inside.transpose(1, 2).flatten(1)}


def _within(q: Tensor, p: Tensor, usable: Tensor, tokens: Tensor, at: Rows) -> tuple[Sums, Ratios]:
    """Products of log q and log p less their means in the sequence, now and one position on."""
    size = tokens.clamp(min=1)

    def centred(x: Tensor) -> Tensor:
        return torch.where(usable, x - at.spread((at.total(x) / size).float()), 0.0)

    def crossed(x: Tensor, y: Tensor) -> list[Tensor]:
        """x(t) y(t - 1) and x(t) y(t + 1), where both are of one sequence; [..., C - 1]."""
        return [x[..., 1:] * y[..., :-1], x[..., :-1] * y[..., 1:]]

    both = centred(torch.cat([q, p]))
    q, p = both[:1], both[1:]
    squares = both * both
    bend = centred((squares[1:] - squares[:1]) / 2)  # d (q + p) / 2: large where one is sharper
    qq, pp, qp, bends = at.total(torch.cat([squares, q * p, bend * bend]))
    crosses = torch.cat([*crossed(q, p), *crossed(bend, p)])
    if (together := at.together()) is not None:
        crosses = torch.nn.functional.pad(torch.where(together, crosses, 0.0), (1, 0))
    before, after, bent, bent_after = at.total(crosses)
    sums = torch.stack([qq, pp, qp, before, after]).sum(-1, keepdim=True)
    found = dict(zip(("qq", "pp", "qp", "before", "after"), sums, strict=True))
    return found, {
        "shift": (before - after, (qq + pp) / 2),
        "slope": ((pp - qq) / 2, (qq + pp + 2 * qp) / 4),
        "context": (bent - bent_after, bends),
    }


def _ends(d: Tensor, usable: Tensor, tokens: Tensor, at: Rows) -> tuple[Sums, Ratios]:
    """|d| of the first and the last token of each sequence, of the others, and of an only one."""
    size = d.abs()
    places = torch.stack([at.first(usable), at.last(usable)])
    at_first, at_last = at.at(size.expand(2, *size.shape), places)
    some, alone = (tokens > 1).double(), (tokens == 1).double()
    found = {
        "first": (at_first * some, some),
        "last": (at_last * some, some),
        "lone": (at_last * alone, alone),
    }
    off = {f"{end}_off": (x > END_OFF).sum(-1) for end, (x, _) in found.items()}
    inside = at.total(size) - at_first - at_last * some
    return off, {**found, "middle": (inside, (tokens - 2).clamp(min=0))}


def _of_entropies(trainer: Tensor, entropy: Tensor, known: Tensor) -> Sums:
    """Their sum; and where one token is nearly sure, how often another should come, and did."""
    probability, sure = trainer.exp(), known & (entropy <= SURE)
    likeliest = probability >= 0.5
    terms = torch.stack(
        [
            torch.where(known, entropy, 0.0),
            torch.where(sure & likeliest, 1 - probability, 0.0),
            (sure & ~likeliest).float(),
            known.float(),
        ]
    )
    names = ("entropy", "sure", "sure_other", "entropic")
    return dict(zip(names, terms.sum(-1).double().sum(-1), strict=True))


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
    """Stretches of one value under all policies, in what is counted, at a row's end or start."""
    last, first = at.last(mask), at.first(mask)
    rows = (last >= 0).sum()
    long = last - first >= SHORTEST_PADDING - 1
    if last.is_cpu and not (
        _alike(log_probs, last, last - 1, long, at) or _alike(log_probs, first, first + 1, long, at)
    ):  # all of this is 0
        return {"rows": rows}
    padded = torch.maximum(
        _stretch(log_probs, mask, at, last, lambda other: at.columns > at.spread(at.last(other))),
        _stretch(log_probs, mask, at, first, lambda other: at.columns < at.spread(at.first(other))),
    )
    return {"padded": padded.sum(), "padded_rows": (padded > 0).sum(), "rows": rows}


def _stretch(
    log_probs: Mapping[str, Tensor],
    mask: Tensor,
    at: Rows,
    end: Tensor,
    beyond: Callable[[Tensor], Tensor],
) -> Tensor:
    """[S] tokens of the stretch at one end of each row; 0: it is none that is padding.

    Args:
        log_probs: by policy, [R, C].
        mask: [R, C] what is counted.
        at: where the sequences are.
        end: [S] the column at that end.
        beyond: from the tokens with another value to those between all of them and the end.
    """
    same, certain = mask, torch.ones_like(end, dtype=torch.bool)
    for x in log_probs.values():
        value = at.at(x, end)
        certain = certain & (value.abs() < CERTAIN)
        same = same & (x == at.spread(value.to(x.dtype)))
    run = same & beyond(mask & ~same)
    lengths, alike, counted = at.total(run), at.total(same), at.total(mask)
    others = counted - lengths
    least = torch.where(certain, SHORTEST_CERTAIN, SHORTEST_PADDING)
    padded = (lengths >= least) & (others > 0) & (alike - lengths <= RARE * others)
    return torch.where(padded, lengths, 0.0)


def _alike(
    log_probs: Mapping[str, Tensor], one: Tensor, two: Tensor, which: Tensor, at: Rows
) -> bool:
    """Whether two columns of any of some rows are alike under all policies."""
    every = torch.stack(list(log_probs.values()))
    one, two = (torch.where(which, place, -1) for place in (one, two))
    return bool(((at.at(every, one) == at.at(every, two)).all(0) & which).any())


def _in_order(found: Sums, ratios: Ratios, like: Tensor) -> Tensor:
    """[P, SIGNATURES]; what was not computed is 0."""
    pairs = like.shape[0]
    sums = like.new_zeros(pairs, len(SIGNATURES), dtype=torch.float64)
    if found:
        columns = [sums[:, :0]]  # of float64, so that all of them are
        for x in found.values():
            column = x if x.dim() == 2 else x.reshape(-1, 1)
            columns.append(column if column.shape[0] == pairs else column.expand(pairs, 1))
        sums[:, _places(tuple(found), like.device)] = torch.cat(columns, -1)
    if ratios:
        terms = torch.stack([x.expand_as(like) for pair in ratios.values() for x in pair])
        a, b = terms[::2], terms[1::2]
        products = torch.stack([a, b, a * a, a * b, b * b]).sum(-1).permute(1, 2, 0)  # [K, P, 5]
        of_ratios = sums[:, len(SIGNATURE_SUMS) :].view(pairs, -1, len(RATIO_SUMS))
        of_ratios[:, _places(tuple(ratios), like.device)] = products.transpose(0, 1)
    return sums


@cache
def _places(names: tuple[str, ...], device: torch.device) -> Tensor:
    """Where sums, or ratios, of these names are; ``"bins"`` are many."""
    order = SIGNATURE_RATIOS if names[0] in SIGNATURE_RATIOS else SIGNATURE_SUMS
    flat = [one for name in names for one in (BINNED if name == BINS else (name,))]
    return moved(torch.tensor([order.index(name) for name in flat]), device)
