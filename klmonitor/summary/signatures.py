"""What tells why two policies disagree: sums over whole sequences that no single token shows.

One function for every device, in plain torch, on at most `fields.SAMPLED` tokens a step; beside
the passes over all tokens, not in them. Formulas and what each is for: docs/causes.md. All pairs of
a batch are computed at once, [P, R, C] for R rows of C tokens, in float32 (a signature is good to
1e-5 of its terms), sums over sequences in float64; nothing waits for the device.

A batch of a small model costs what the calls cost, whatever they compute: what is summed is stacked
and summed at once, products are one matrix product a sequence, and what cannot be is looked for in
a batch only where one look at all of it (on the CPU) does not rule it out. A token that does not
count has log-prob `NOWHERE` under every policy, so that every difference there is 0.
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
    SIGNATURE,
    SIGNATURES,
    SURE,
)
from klmonitor.summary.sequences import Rows, unpacked
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
NOWHERE = -1.0
"""Nats: in the place of a log-prob that does not count."""

BINS = tuple(f"{x}_{i}" for x in ("n", "abs", "left") for i in range(len(PROBABILITIES) + 1))
OF_SEQUENCES = (
    *("tokens", "sequences", "ratio_above", "ratio_below", "ratio", "ratio2", "largest"),
    *("up", "down"),
)
OF_ENTROPIES = ("entropy", "sure", "sure_other", "entropic")
PADDED = ("padded", "padded_rows")
OFF = ("first_off", "last_off", "lone_off")
PRODUCTS = ("qq", "pp", "qp", "before", "after")
WITHIN = ("shift", "slope", "context")
NOW: Mapping[str, tuple[int, int]] = {"qq": (0, 0), "pp": (1, 1), "qp": (0, 1), "bends": (2, 2)}
LAGGED: Mapping[str, tuple[int, int]] = {
    "before": (0, 1),
    "after": (1, 0),
    "bent": (2, 1),
    "bent_after": (1, 2),
}
"""Products of (q, p, bend), less their means, at one token, and of one with the token before's."""
_TERMS: tuple[dict[str, float], ...] = (
    {"before": 1.0, "after": -1.0},
    {"qq": 0.5, "pp": 0.5},
    {"pp": 0.5, "qq": -0.5},
    {"qq": 0.25, "pp": 0.25, "qp": 0.5},
    {"bent": 1.0, "bent_after": -1.0},
    {"bends": 1.0},
    *({name: 1.0} for name in PRODUCTS),
)
"""Numerators and denominators of `WITHIN`, and `PRODUCTS`, from these."""
Found: TypeAlias = "list[tuple[tuple[str, ...], Tensor]]"
"""Names of `fields.SIGNATURES`, n of them, with their sums: [n, P], or [n, 1] of one pair."""
Ratios: TypeAlias = "dict[str, tuple[Tensor, Tensor]]"
"""By name of `fields.SIGNATURE_RATIOS`: numerator and denominator of each sequence, [S]."""


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
    one = next((k for k, pair in enumerate(pairs) if pair.q == "rollout"), 0)
    with torch.inference_mode():  # a tenth less a call
        found = signatures(batch, pairs, one, extras, rows, columns)
        places = _places(
            tuple((names, sums.shape[1]) for names, sums in found),
            tuple(PAIR_INDEX[pair.name] for pair in pairs),
            one,
            batch.device,
        )
        sums = torch.cat([sums.reshape(-1) for _, sums in found])
        state.signatures.view(-1).index_add_(0, places, sums.double())
    return taken + rows * columns


@cache
def _places(
    found: tuple[tuple[tuple[str, ...], int], ...],
    pairs: tuple[int, ...],
    one: int,
    device: torch.device,
) -> Tensor:
    """Where sums of these names, for all pairs or for one, are in a state's signatures."""
    places = [
        pair * len(SIGNATURES) + SIGNATURE[name]
        for names, width in found
        for name in names
        for pair in (pairs if width == len(pairs) else pairs[one : one + 1])
    ]
    return moved(torch.tensor(places), device)


def signatures(
    batch: TokenBatch, pairs: Sequence[Pair], one: int, extras: Extras, rows: int, columns: int
) -> Found:
    """Sums over the first rows (or packed columns) of a batch.

    Args:
        batch: checked log-probs.
        pairs: which pairs.
        one: the pair whose tokens are looked at closely, that of the engine if there is one.
        extras: what else is known.
        rows: how many, and
        columns: how long.
    """
    whole = (rows, columns) == batch.shape

    def part(x: Tensor) -> Tensor:
        return x if whole else x[:rows, :columns]

    segments = None if batch.segments is None else batch.segments[:columns]
    every = torch.stack([part(x) for x in batch.log_probs.values()]).float()
    at = Rows(
        rows if segments is None else batch.n_sequences,
        torch.arange(columns, device=every.device),
        segments,
    )
    if batch.mask is not None:
        mask = part(batch.mask)
    else:
        mask = torch.ones_like(every[0], dtype=torch.bool)
    if segments is not None and columns < batch.shape[1]:
        assert batch.segments is not None  # as segments are not
        mask = mask & (segments != batch.segments[columns])
    entropy = None if extras.entropy is None else part(extras.entropy).float()
    if segments is not None and (rowwise := unpacked(segments)):
        at, places, inside = rowwise
        every, mask = every[:, 0, places], mask[0, places] & inside
        entropy = None if entropy is None else entropy[0, places]
    found: Found = []
    if not _unrepeated(every, mask):
        found.append((PADDED, _padding(every, mask, at).expand(-1, len(pairs))))
    every = torch.where(mask, every, NOWHERE)
    log_probs = dict(zip(batch.log_probs, every.unbind(), strict=True))
    q, p = (torch.stack([log_probs[getattr(pair, k)] for pair in pairs]) for k in ("q", "p"))
    usable, ordinary = mask.expand_as(q), every.is_cpu and _ordinary(every)
    if not ordinary:
        counted, usable = _impossible(q, p, mask)
        found += counted
        q, p = (torch.where(usable, x, NOWHERE) for x in (q, p))
    d, counts = p - q, usable.float()
    features = [counts, d, d > ASIDE, d < -ASIDE]
    alike = usable[:1] if ordinary else usable  # what the same tokens of all pairs have
    if entropy is not None:
        trainer = log_probs["old" if "old" in log_probs else "policy"]
        features += _of_entropies(trainer, entropy, alike)
    totals = torch.split(at.total(torch.cat(features)), [len(x) for x in features])
    tokens, of_sequence, up, down, *entropic = totals
    sums, seen = _of_sequences(d, tokens, of_sequence, at)
    found.append((OF_SEQUENCES, torch.stack([*sums, up, down]).sum(-1)))
    if entropic:
        of_entropies = torch.cat([torch.stack(entropic[1:]), _products(entropic[0], entropic[-1])])
        names = (*OF_ENTROPIES, *_SURPRISE)
        found.append((names, of_entropies.sum(-1).expand(-1, len(pairs))))
    seen = seen if ordinary else (at.total(mask.float()) > 0).expand_as(tokens)
    found.append((("rows",), seen.sum(-1).unsqueeze(0)))
    q, d, counts = (x[one : one + 1] for x in (q, d, counts))
    tokens = tokens[one]
    gap = at.total(torch.expm1(d.clamp(max=LARGEST_FLOAT)))[0]
    ratios: Ratios = {"d": (of_sequence[one], tokens), "gap": (gap, tokens)}
    sums_within, of_within = _within(q, q + d, counts, tokens, at)
    ratios |= of_within
    size = d.abs()
    found += [*sums_within, (BINS, _by_probability(q, size, counts))]
    if pairs[one].q == "rollout":  # what nobody asks of other pairs
        off, of_ends = _ends(size, counts, tokens, at)
        found.append((OFF, off))
        ratios |= of_ends
        if "ref" in log_probs:
            ratios["who"] = _who(q, d, log_probs["ref"], counts, at)
        if extras.lag is not None:
            ratios |= _by_lag(extras.lag[: at.count], d, tokens, at)
    return found + _in_order(ratios)


def _who(q: Tensor, d: Tensor, ref: Tensor, counts: Tensor, at: Rows) -> tuple[Tensor, Tensor]:
    """Whether q is nearer to the reference than to p."""
    known = (counts > 0) & (ref.abs() < SENTINEL)
    nearer = torch.where(known, (q - ref).square() - d.square(), 0.0)
    found, count = at.total(torch.cat([nearer, known])).unbind()
    return found, count


def _ordinary(x: Tensor) -> bool:
    """Whether all are finite log-probs below 0 and no sentinel (nan fails both questions)."""
    low, high = x.aminmax()
    return bool(high < 0) and bool(low > -SENTINEL)


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
    return [(tuple(counted), torch.stack(list(counted.values())).sum((-2, -1)))], usable


def _of_sequences(
    d: Tensor, tokens: Tensor, of_sequence: Tensor, at: Rows
) -> tuple[list[Tensor], Tensor]:
    """The sequences' ratios exp(sum d) and their largest token k3; which have tokens. [P, S]."""
    seen, far = tokens > 0, math.log(SEQUENCE_RATIO)
    ratio = of_sequence.clamp(-LARGEST_SEQUENCE, LARGEST_SEQUENCE).exp() * seen
    ends = at.extent(d).double()  # k3 is convex
    k3 = (torch.expm1(ends.clamp(max=CLAMP)) - ends).amax(0)
    above, below = of_sequence > far, of_sequence < -far
    return [tokens, seen, above, below, ratio, ratio * ratio, k3], seen


def _by_probability(q: Tensor, size: Tensor, counts: Tensor) -> Tensor:
    """Mean |d| by bins of q(x), beside 1 - q(x) (arXiv 2512.23087: mismatch grows as 1 - p)."""
    edges, inside = _edges(q.device)
    probability = q.clamp(max=0.0).exp()
    features = torch.cat([counts, size, counts - probability * counts]).flatten(1).double()
    above = (probability >= edges).flatten(1).double()  # [bins, tokens]: from each edge on
    return (inside @ (above @ features.T)).T.reshape(-1, 1)


@cache
def _edges(device: torch.device) -> tuple[Tensor, Tensor]:
    """Lower edges of the bins of q(x), and what makes of sums from each edge on those of bins."""
    bins = len(PROBABILITIES) + 1
    edges = torch.tensor([-1.0, *PROBABILITIES]).view(bins, 1, 1)
    inside = torch.eye(bins, dtype=torch.float64)
    inside -= torch.diag(inside.new_ones(bins - 1), 1)
    return moved(edges, device), moved(inside, device)


def _within(q: Tensor, p: Tensor, counts: Tensor, tokens: Tensor, at: Rows) -> tuple[Found, Ratios]:
    """Products of log q and log p less their means in the sequence, now and one position on."""
    size = tokens.clamp(min=1)

    def centred(x: Tensor) -> Tensor:
        return (x - at.spread((at.total(x) / size).float())) * counts

    both = centred(torch.cat([q, p]) * counts)
    squares = both * both
    bend = centred((squares[1:] - squares[:1]) / 2)  # d (q + p) / 2: large where one is sharper
    three = torch.cat([both, bend]).double()
    now = at.products(three, tuple(NOW.values()))
    lagged = at.products(three, tuple(LAGGED.values()), 1)
    terms = torch.cat([now, lagged], 1) @ _combined(q.device)
    cut = 2 * len(WITHIN)
    tops, bottoms = terms[:, :cut:2].unbind(1), terms[:, 1:cut:2].unbind(1)
    ratios = dict(zip(WITHIN, zip(tops, bottoms, strict=True), strict=True))
    return [(PRODUCTS, terms[:, cut:].sum(0).unsqueeze(-1))], ratios


@cache
def _combined(device: torch.device) -> Tensor:
    """[products, `_TERMS`] how much of each product is in each term."""
    weights = [[term.get(name, 0.0) for term in _TERMS] for name in (*NOW, *LAGGED)]
    return moved(torch.tensor(weights, dtype=torch.float64), device)


def _ends(size: Tensor, counts: Tensor, tokens: Tensor, at: Rows) -> tuple[Tensor, Ratios]:
    """|d| of the first and the last token of each sequence, of the others, and of an only one."""
    first, last = at.ends(counts, size).unbind()
    several, alone = (tokens > 1).double(), (tokens == 1).double()
    values = torch.cat([first, last, last]) * torch.stack([several, several, alone])
    at_first, at_last, of_lone = values.unbind()
    middle = at.total(size)[0] - first[0] - at_last
    return (values > END_OFF).sum(-1, keepdim=True), {
        "first": (at_first, several),
        "last": (at_last, several),
        "lone": (of_lone, alone),
        "middle": (middle, (tokens - 2).clamp(min=0)),
    }


def _of_entropies(trainer: Tensor, entropy: Tensor, usable: Tensor) -> list[Tensor]:
    """-log p - H; H; where one token is nearly sure, how often another should come, and did.

    [P, R, C] each, of as many pairs as `usable` has; the last: whether the entropy is known.
    """
    known = usable & entropy.isfinite() & (trainer.abs() < SENTINEL)
    probability, sure = trainer.exp(), known & (entropy <= SURE)
    likeliest = probability >= 0.5
    return [
        torch.where(known, -trainer - entropy, 0.0),
        torch.where(known, entropy, 0.0),
        torch.where(sure & likeliest, 1 - probability, 0.0),
        sure & ~likeliest,
        known,
    ]


def _by_lag(lag: Tensor, d: Tensor, tokens: Tensor, at: Rows) -> Ratios:
    """k3 of the sequences of each lag."""
    d = d.double()
    k3 = at.total(torch.expm1(d.clamp(max=CLAMP)) - d)[0]
    bounded = lag.clamp(0, len(LAGS) - 1)
    of_lags = {name: bounded == i for i, name in enumerate(LAGS)}
    return {
        name: (torch.where(which, k3, 0.0), torch.where(which, tokens, 0.0))
        for name, which in of_lags.items()
    }


def _unrepeated(every: Tensor, mask: Tensor) -> bool:
    """Whether no token has the values of the one before it: then nothing is padded.

    Args:
        every: [policies, R, C].
        mask: [R, C] which tokens count.
    """
    if not every.is_cpu:
        return False
    same = (every[..., 1:] == every[..., :-1]).all(0) & mask[..., 1:]
    return not bool(same.any())


def _padding(every: Tensor, mask: Tensor, at: Rows) -> Tensor:
    """Stretches of one value under all policies, in what is counted, at a row's end or start.

    [2, 1]: their tokens, and how many there are.
    """
    last, first = at.last(mask), at.first(mask)
    padded = torch.maximum(
        _stretch(every, mask, at, last, lambda other: at.columns > at.spread(at.last(other))),
        _stretch(every, mask, at, first, lambda other: at.columns < at.spread(at.first(other))),
    )
    return torch.stack([padded, padded > 0]).sum(-1, keepdim=True)


def _stretch(
    every: Tensor, mask: Tensor, at: Rows, end: Tensor, beyond: Callable[[Tensor], Tensor]
) -> Tensor:
    """[S] tokens of the stretch at one end of each row; 0: it is none that is padding.

    Args:
        every: log-probs, [policies, R, C].
        mask: [R, C] what is counted.
        at: where the sequences are.
        end: [S] the column at that end.
        beyond: from the tokens with another value to those between all of them and the end.
    """
    value = at.at(every, end)
    certain = (value.abs() < CERTAIN).all(0)
    same = mask & (every == at.spread(value.to(every.dtype))).all(0)
    run = same & beyond(mask & ~same)
    lengths, alike, counted = at.total(run), at.total(same), at.total(mask)
    others = counted - lengths
    least = torch.where(certain, SHORTEST_CERTAIN, SHORTEST_PADDING)
    padded = (lengths >= least) & (others > 0) & (alike - lengths <= RARE * others)
    return torch.where(padded, lengths, 0.0)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """[5, ...]: what the sums of a ratio are over."""
    return torch.stack([a, b, a * a, a * b, b * b])


def _in_order(ratios: Ratios) -> Found:
    """The five sums of each ratio of the one pair."""
    terms = torch.stack([x for both in ratios.values() for x in both])
    both = terms.view(len(ratios), 2, -1)
    products = both @ both.transpose(1, 2)
    sums = torch.cat([both.sum(-1), products[:, 0], products[:, 1, 1:]], -1)
    return [(_names_of(tuple(ratios)), sums.reshape(-1, 1))]


@cache
def _names_of(ratios: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{ratio}/{what}" for ratio in ratios for what in RATIO_SUMS)


_SURPRISE = _names_of(("surprise",))
