"""The signatures of causes in plain torch.

All pairs of a batch are computed at once, [P, R, C] for R rows of C tokens, of float32 values in
float64.

A batch of a small model costs what the calls cost, whatever they compute: what is summed is stacked
and summed at once, and products are one matrix product a sequence. A token that does not count has
log-prob `NOWHERE` under every policy, so that every difference there is 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
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
    END_OFF,
    HIGH,
    LAGS,
    LARGEST_FLOAT,
    LARGEST_SEQUENCE,
    PLACEHOLDER,
    PROBABILITIES,
    RATIO_SUMS,
    SENTINEL,
    SEQUENCE_RATIO,
    SIGNATURE,
    SIGNATURES,
    SURE,
)
from klmonitor.summary.padding import padding
from klmonitor.summary.sequences import Rows, unpacked
from klmonitor.summary.state import Summary

NOWHERE = -1.0
"""Nats: in the place of a log-prob that does not count."""

BINS = tuple(f"{x}_{i}" for x in ("n", "abs", "left") for i in range(len(PROBABILITIES) + 1))
OF_TOKENS = ("tokens", "d", "gap", "up", "down")
OF_ENTROPIES = ("surprise", "entropy", "sure", "sure_other", "entropic")
OF_SEQUENCES = ("sequences", "ratio_above", "ratio_below", "ratio", "largest")
PADDED = ("padded", "padded_rows")
OF_ENDS = ("first", "last", "middle", "lone", "several", "inner", "alone")
OFF = ("first_off", "last_off", "lone_off")
PRODUCTS = ("qq", "pp", "qp", "before", "after")
NOW: Mapping[str, tuple[int, int]] = {"qq": (0, 0), "pp": (1, 1), "qp": (0, 1), "bends": (2, 2)}
LAGGED: Mapping[str, tuple[int, int]] = {
    "before": (0, 1),
    "after": (1, 0),
    "bent": (2, 1),
    "bent_after": (1, 2),
}
"""Products of (q, p, 2 bend), less their means, at one token, and of one with the token before's.
"""
_TERMS: Mapping[str, Mapping[str, float]] = {
    "shift/top": {"before": 1.0, "after": -1.0},
    "shift/bottom": {"qq": 0.5, "pp": 0.5},
    "slope/top": {"pp": 0.5, "qq": -0.5},
    "slope/bottom": {"qq": 0.25, "pp": 0.25, "qp": 0.5},
    "context/top": {"bent": 0.5, "bent_after": -0.5},
    "context/bottom": {"bends": 0.25},
    **{name: {name: 1.0} for name in PRODUCTS},
}
"""What is kept of a sequence, from these."""
RATIOS: Mapping[str, tuple[str, str]] = {
    "d": ("d", "tokens"),
    "gap": ("gap", "tokens"),
    "surprise": ("surprise", "entropic"),
    "first": ("first", "several"),
    "last": ("last", "several"),
    "middle": ("middle", "inner"),
    "lone": ("lone", "alone"),
    **{name: (f"{name}/top", f"{name}/bottom") for name in ("shift", "slope", "context")},
    **{name: (f"{name}/top", f"{name}/bottom") for name in ("who", *LAGS)},
}
"""Numerators and denominators of `fields.SIGNATURE_RATIOS`."""
Found: TypeAlias = "dict[tuple[str, ...], Tensor]"
"""By name, n of them: of each sequence [n, P, S], or of one pair [n, S]; of all tokens [n, P]."""


@torch.inference_mode()  # a tenth less a call
def add_plain(
    state: Summary,
    batch: TokenBatch,
    pairs: Sequence[Pair],
    one: int,
    extras: Extras,
    rows: int,
    columns: int,
) -> None:
    """Add what `signatures` finds, whose arguments these are, to a state, in place."""
    by_sequence, whole = signatures(batch, pairs, one, extras, rows, columns)
    every = torch.cat([x.flatten(0, -2) for x in by_sequence.values()])
    taken_from, places = _places(
        *(tuple((names, x.ndim) for names, x in some.items()) for some in (by_sequence, whole)),
        tuple(PAIR_INDEX[pair.name] for pair in pairs),
        one,
    )
    sums = torch.cat([(every @ every.mT).flatten(), *(x.flatten() for x in whole.values())])
    state.signatures.view(-1).index_add_(0, places, sums.index_select(0, taken_from))


@cache
def _places(
    by_sequence: tuple[tuple[tuple[str, ...], int], ...],
    whole: tuple[tuple[tuple[str, ...], int], ...],
    pairs: tuple[int, ...],
    one: int,
) -> tuple[Tensor, Tensor]:
    """Which products over sequences, and sums behind them, are what of a state's signatures.

    A sum over sequences is a product with ``sequences``, which is 1 where a pair has tokens.
    """
    every = range(len(pairs))
    rows = [
        (name, k)
        for names, dimensions in by_sequence
        for name in names
        for k in (every if dimensions == 3 else (one,))
    ]
    row = {which: number for number, which in enumerate(rows)}
    found = {(name, k): (name, "sequences") for name, k in rows if name in SIGNATURE}
    for k in every:
        found |= {("ratio2", k): ("ratio", "ratio"), ("rows", k): ("rows", "rows")}
    for ratio, (a, b) in RATIOS.items():
        products = ((a, "sequences"), (b, "sequences"), (a, a), (a, b), (b, b))
        for k in every if ratio == "surprise" else (one,):
            if (a, k) in row:
                names = (f"{ratio}/{what}" for what in RATIO_SUMS)
                found |= dict(zip(((name, k) for name in names), products, strict=True))
    taken = [row[a, k] * len(rows) + row[b, k] for (_, k), (a, b) in found.items()]
    of_tokens = [
        (name, k)
        for names, dimensions in whole
        for name in names
        for k in (every if dimensions == 2 else (one,))
    ]
    taken += range(len(rows) ** 2, len(rows) ** 2 + len(of_tokens))
    places = [pairs[k] * len(SIGNATURES) + SIGNATURE[name] for name, k in (*found, *of_tokens)]
    return torch.tensor(taken, device="cpu"), torch.tensor(places, device="cpu")


def signatures(
    batch: TokenBatch, pairs: Sequence[Pair], one: int, extras: Extras, rows: int, columns: int
) -> tuple[Found, Found]:
    """What the first rows (or packed columns) of a batch have, by sequence, and in sums.

    Args:
        batch: checked log-probs.
        pairs: which pairs.
        one: the pair whose tokens are looked at closely, that of the engine if there is one.
        extras: what else is known.
        rows: how many, and
        columns: how long.
    """
    cut = (rows, columns) != batch.shape

    def part(x: Tensor) -> Tensor:
        return x[:rows, :columns] if cut else x

    every = _widened(torch.stack([part(x) for x in batch.log_probs.values()]))
    at = Rows.of(batch, rows, columns)
    mask = torch.ones_like(every[0], dtype=torch.bool) if batch.mask is None else part(batch.mask)
    if cut and batch.segments is not None:
        mask = mask & (batch.segments[:columns] != batch.segments[columns])
    entropy = None if extras.entropy is None else _widened(part(extras.entropy))
    if at.segments is not None and (rowwise := unpacked(at.segments)):
        at, places, inside = rowwise
        every, mask = every[:, 0, places], mask[0, places] & inside
        entropy = None if entropy is None else entropy[0, places]
    whole: Found = {PADDED: padding(every, mask, at).expand(-1, len(pairs))}
    every = torch.where(mask, every, NOWHERE)
    log_probs = dict(zip(batch.log_probs, every.unbind(), strict=True))
    q, p = (torch.stack([log_probs[getattr(pair, k)] for pair in pairs]) for k in ("q", "p"))
    found: Found = {("rows",): (at.total(mask.float()) > 0).expand(1, len(pairs), -1)}
    counted, usable = _impossible(q, p, mask)
    whole |= counted
    q, p = (torch.where(usable, x, NOWHERE) for x in (q, p))
    d, counts = p - q, usable.to(q.dtype)
    gap = torch.expm1(d.clamp(max=LARGEST_FLOAT))
    totals = at.total(torch.stack([counts, d, gap, d > ASIDE, d < -ASIDE]))
    found[OF_TOKENS] = totals
    if entropy is not None:
        trainer = log_probs["old" if "old" in log_probs else "policy"]
        of_entropies = torch.stack(_of_entropies(trainer, entropy, usable))
        found[OF_ENTROPIES] = at.total(of_entropies)
    tokens, of_sequence, *_ = totals.unbind()
    found[OF_SEQUENCES] = _of_sequences(d, tokens, of_sequence, at)
    if len(pairs) > 1:
        q, p, d, counts, usable = (x[one : one + 1] for x in (q, p, d, counts, usable))
        tokens = tokens[one : one + 1]
    size = d.abs()
    found[tuple(_TERMS)] = _within(torch.cat([q, p]), counts, usable, tokens, at)
    whole[BINS] = _by_probability(q, size, counts)
    if pairs[one].q == "rollout":  # what nobody asks of other pairs
        found |= _ends(size, counts, tokens, at)
        if "ref" in log_probs:
            found["who/top", "who/bottom"] = _who(q, d, log_probs["ref"], counts, at)
        if extras.lag is not None:
            found |= _by_lag(extras.lag[: at.count], d, tokens, at)
    return found, whole


def _widened(x: Tensor) -> Tensor:
    """As float32, and those values as float64, in which the compiled pass computes."""
    return x.float().double()


def _who(q: Tensor, d: Tensor, ref: Tensor, counts: Tensor, at: Rows) -> Tensor:
    """[2, S] whether q is nearer to the reference than to p, and of how many tokens."""
    known = (counts > 0) & (ref.abs() < SENTINEL)
    nearer = torch.where(known, (q - ref).square() - d.square(), 0.0)
    return at.total(torch.cat([nearer, known]))


def _impossible(q: Tensor, p: Tensor, mask: Tensor) -> tuple[Found, Tensor]:
    """Counts of what is no log-prob, and the tokens that are left: [P, R, C]."""
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
    return {tuple(counted): torch.stack(list(counted.values())).sum((-2, -1))}, usable


def _of_sequences(d: Tensor, tokens: Tensor, of_sequence: Tensor, at: Rows) -> Tensor:
    """[5, P, S] which have tokens, their ratios exp(sum d), and their largest token k3."""
    seen, far = tokens > 0, math.log(SEQUENCE_RATIO)
    ratio = of_sequence.clamp(-LARGEST_SEQUENCE, LARGEST_SEQUENCE).exp() * seen
    ends = at.extent(d).double()  # k3 is convex
    k3 = (torch.expm1(ends.clamp(max=CLAMP)) - ends).amax(0)
    return torch.stack([seen, of_sequence > far, of_sequence < -far, ratio, k3])


def _by_probability(q: Tensor, size: Tensor, counts: Tensor) -> Tensor:
    """[`BINS`] mean |d| by bins of q(x), beside 1 - q(x) (arXiv 2512.23087: mismatch grows so)."""
    edges, inside = _edges()
    probability = q.clamp(max=0.0).exp()
    features = torch.cat([counts, size, (1 - probability) * counts]).flatten(1).double()
    above = (probability >= edges).flatten(1).double()  # [bins, tokens]: from each edge on
    return (features @ above.mT @ inside).flatten()


@cache
def _edges() -> tuple[Tensor, Tensor]:
    """Lower edges of the bins of q(x), and what makes of sums from each edge on those of bins."""
    bins = len(PROBABILITIES) + 1
    edges = torch.tensor([-1.0, *PROBABILITIES], dtype=torch.float64, device="cpu").view(-1, 1, 1)
    inside = torch.eye(bins, dtype=torch.float64, device="cpu")
    inside -= torch.diag(inside.new_ones(bins - 1), -1)
    return edges, inside


def _within(both: Tensor, counts: Tensor, usable: Tensor, tokens: Tensor, at: Rows) -> Tensor:
    """[`_TERMS`, S] products of log q and log p less their means, now and one position on.

    Args:
        both: [2, R, C] log q and log p.
        counts: [1, R, C] 1 where a token counts, else 0; and
        usable: as a mask.
        tokens: [1, S] how many.
        at: where the sequences are.
    """

    def centred(x: Tensor) -> Tensor:
        mean = at.spread((at.total(x * counts) / tokens).to(x.dtype))
        return torch.where(usable, x - mean, 0.0)

    both = centred(both)
    squares = both * both
    bend = centred(squares[1:] - squares[:1])  # 2 d (q + p) / 2: large where one is sharper
    products = at.products(torch.cat([both, bend]).double())
    return (products.flatten(1) @ _combined()).mT


@cache
def _combined() -> Tensor:
    """[products, `_TERMS`] how much of each product is in each term."""
    weights = torch.zeros(2, 3, 3, len(_TERMS), dtype=torch.float64, device="cpu")
    for column, term in enumerate(_TERMS.values()):
        for name, weight in term.items():
            lag, (i, j) = (0, NOW[name]) if name in NOW else (1, LAGGED[name])
            weights[lag, i, j, column] = weight
    return weights.flatten(0, 2)


def _ends(size: Tensor, counts: Tensor, tokens: Tensor, at: Rows) -> Found:
    """|d| of the first and the last token of each sequence, of the others, and of an only one."""
    first, last = at.ends(counts, size).unbind()
    several, alone = (tokens > 1).double(), (tokens == 1).double()
    values = torch.cat([first, last, last]) * torch.cat([several, several, alone])
    at_first, at_last, of_lone = values.unbind()
    middle = at.total(size)[0] - first[0] - at_last
    inner = (tokens[0] - 2).clamp(min=0)
    ends = (at_first, at_last, middle, of_lone, several[0], inner, alone[0])
    return {OFF: values > END_OFF, OF_ENDS: torch.stack(ends)}


def _of_entropies(trainer: Tensor, entropy: Tensor, usable: Tensor) -> list[Tensor]:
    """-log p - H; H; where one token is nearly sure, how often another should come, and did.

    [P, R, C] each; the last: whether the entropy is known.
    """
    known = usable & entropy.isfinite() & (trainer.abs() < SENTINEL)
    probability, sure = trainer.clamp(max=LARGEST_FLOAT).exp(), known & (entropy <= SURE)
    likeliest = probability >= 0.5
    return [
        torch.where(known, -trainer - entropy, 0.0),
        torch.where(known, entropy, 0.0),
        torch.where(sure & likeliest, 1 - probability, 0.0),
        sure & ~likeliest,
        known,
    ]


def _by_lag(lag: Tensor, d: Tensor, tokens: Tensor, at: Rows) -> Found:
    """The k3 of the sequences of each lag, and their tokens: [2, S] each."""
    d = d.double()
    k3 = at.total(torch.expm1(d.clamp(max=CLAMP)) - d)
    both, bounded = torch.cat([k3, tokens]), lag.clamp(0, len(LAGS) - 1)
    return {
        (f"{name}/top", f"{name}/bottom"): torch.where(bounded == i, both, 0.0)
        for i, name in enumerate(LAGS)
    }
