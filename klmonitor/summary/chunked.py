"""The pass over the tokens in plain torch: any device, any layout, a few buffers of one tile.

Per tile: d = log p - log q in float64, the features of `layout.MOMENTS`, their inner products along
each row, the histogram's buckets. A row's sums are taken over that row alone, so they do not depend
on which rows came with it: splitting a batch by rows changes a total by float64 rounding only.

On the CPU a tile with a non-finite or a huge d (rare) is noticed from its extremes and handled
apart; on a GPU that question would be a synchronisation, so every tile takes the careful way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from klmonitor.batch import TokenBatch
from klmonitor.pairs import PAIR_INDEX, POLICIES, Pair, sampler
from klmonitor.summary.extremes import Place, RowExtremes, sequence_records
from klmonitor.summary.layout import (
    BUCKETS,
    CENTRE,
    CLAMP,
    COLUMN,
    CORE_RADIUS,
    GRAM,
    HISTOGRAM,
    LOW_EXPONENT,
    MANTISSA_BITS,
    MOMENTS,
    N_TOKEN_COLUMNS,
    PER_SEQUENCE,
    POLICY_COUNTS,
    WEIGHTED,
)
from klmonitor.summary.state import Summary, first_of
from klmonitor.summary.tiles import tiles

GRAM_INDEX = [
    len(PER_SEQUENCE) * PER_SEQUENCE.index(a) + PER_SEQUENCE.index(b)
    for a, b in (name.split(".") for name in GRAM)
]
GOLDEN = 0x9E3779B97F4A7C15 - 2**64
"""2^64 over the golden ratio, as a signed integer."""
POSITIVE_TOLERANCE = 1e-3
"""Nats: a log-prob above it is positive for other reasons than rounding."""


@dataclass(frozen=True)
class Sums:
    """Where the sums of a tile go: one row a sequence, one column a quantity.

    Attributes:
        rows: [sequences, N_TOKEN_COLUMNS]; for [B, T] input the tile's own rows.
        segments: for packed input the sequence of each token of the tile, else None.
    """

    rows: Tensor
    segments: Tensor | None

    def add(self, column: str, left: Tensor, right: Tensor | None = None, scale: float = 1) -> None:
        """Add scale x the sum over each sequence of left (x right); a bool tensor counts."""
        target = self.rows[:, COLUMN[column]]
        if self.segments is not None:
            product = left.double() if right is None else left * right
            target.index_add_(0, self.segments, product.reshape(-1), alpha=scale)
        elif right is None:
            target.add_(left.sum(-1), alpha=scale)
        else:
            target.add_(torch.linalg.vecdot(left, right), alpha=scale)

    def count(self, column: str, which: Tensor | None, like: Tensor) -> None:
        """Count the True tokens of each sequence; None is True for all of a tile `like`."""
        if which is None and self.segments is None:
            self.rows[:, COLUMN[column]] += like.shape[1]
        else:
            self.add(column, torch.ones_like(like) if which is None else which)


def add_pair(
    state: Summary,
    batch: TokenBatch,
    pair: Pair,
    *,
    place: Place,
    groups: int | Tensor,
    centre: float,
) -> None:
    """Add one pair's tokens to a state, in place.

    Args:
        state: on the batch's device.
        batch: checked log-probs; the pair's policies must be in it.
        pair: which pair.
        place: rank and micro-batch.
        groups: row of the group, or int64 [sequences].
        centre: the pair's recent mean k1, nats.
    """
    q, p = batch.log_probs[pair.q], batch.log_probs[pair.p]
    behaviour = sampler(batch.log_probs)
    weighted = None if behaviour == pair.q else batch.log_probs[behaviour]
    rows = q.new_zeros(batch.n_sequences, N_TOKEN_COLUMNS, dtype=torch.float64)
    histogram = q.new_zeros(HISTOGRAM, dtype=torch.float64)
    extremes = RowExtremes()

    for tile in tiles(batch):
        sums = Sums(
            rows if tile.rows is None else rows[tile.rows],
            None if batch.segments is None else batch.segments[tile.columns],
        )
        mask = None if batch.mask is None else tile.of(batch.mask)
        d = tile.of(p).double() - tile.of(q).double() + 0.0  # -0 becomes 0
        if mask is not None:
            d = torch.where(mask, d, 0.0)
        valid, core = mask, d
        high, low = d.amax(1), d.amin(1)
        if q.is_cuda or not _ordinary(high, low):
            d, valid, core = _careful(d, mask, sums)
            high, low = d.amax(1), d.amin(1)
        sums.count("core/n", valid if core is d else _within(d, valid), d)
        _moments("core", core, sums)
        sums.count("zero", valid, d)
        sums.add("zero", d != 0, scale=-1)
        if weighted is not None:
            _weights(d, tile.of(q).double() - tile.of(weighted).double(), valid, sums)
        _count_buckets(histogram, d, valid)
        extremes.add(tile, high, low)

    if extremes.starts:
        _finish(state, batch, pair, rows, histogram, extremes, place, groups, centre)


def _ordinary(high: Tensor, low: Tensor) -> bool:
    """Whether every d of a tile is finite and within `CORE_RADIUS` (nan fails both questions)."""
    return bool(high.max() <= CORE_RADIUS) and bool(low.min() >= -CORE_RADIUS)


def _within(d: Tensor, valid: Tensor | None) -> Tensor:
    """Which tokens count and are not summed apart."""
    near = d.abs() <= CORE_RADIUS
    return near if valid is None else near & valid


def _careful(d: Tensor, mask: Tensor | None, sums: Sums) -> tuple[Tensor, Tensor, Tensor]:
    """Take out the non-finite tokens, sum those beyond `CORE_RADIUS` apart.

    Returns:
        d with 0 for excluded tokens, which tokens count, and d with 0 for those summed apart.
    """
    finite = d.isfinite()
    nan = d.isnan()
    sums.add("nan", nan)
    sums.add("inf", ~(finite | nan))
    d = torch.where(finite, d, 0.0)
    valid = finite if mask is None else finite & mask
    sums.add("clamped", d > CLAMP)
    far = d.abs() > CORE_RADIUS
    sums.add("tail/n", far)
    _moments("tail", torch.where(far, d, 0.0), sums)
    return d, valid, torch.where(far, 0.0, d)


def _moments(part: str, d: Tensor, sums: Sums) -> None:
    features = {"d": d, "abs": d.abs(), "d2": d * d, "k3": _k3(d, clamp=part == "tail")}
    for moment in MOMENTS:
        right = None if moment.right == "one" else features[moment.right]
        sums.add(f"{part}/{moment.name}", features[moment.left], right)


def _k3(d: Tensor, *, clamp: bool) -> Tensor:
    """k3, at min(d, CLAMP) if asked; in float64 expm1(d) - d is off by 1e-16 |d| only."""
    return torch.expm1(d.clamp(max=CLAMP) if clamp else d).sub_(d)


def _weights(d: Tensor, log_weight: Tensor, valid: Tensor | None, sums: Sums) -> None:
    """Importance-weighted sums: w = q(x) / sampler(x), unclamped but for overflow."""
    usable = log_weight.isfinite()
    if valid is not None:
        usable = usable & valid
    sums.count("unweighted", valid, d)
    sums.add("unweighted", usable, scale=-1)
    w = torch.where(usable, log_weight, -torch.inf).clamp_(max=CLAMP).exp_()
    features = {"w": w, "d": d, "k3": _k3(d, clamp=True)}
    for moment in WEIGHTED:
        right = None if moment.right == "one" else features[moment.right]
        sums.add(moment.name, features[moment.left], right)


def _count_buckets(histogram: Tensor, d: Tensor, valid: Tensor | None) -> None:
    """Count d by its leading bits; tokens that do not count lie in the middle and are taken out."""
    bucket = buckets(d).reshape(-1)
    if d.is_cuda:  # bincount would synchronise; counts are exact in any order
        histogram.index_add_(0, bucket, torch.ones_like(bucket, dtype=histogram.dtype))
    else:
        histogram += torch.bincount(bucket, minlength=HISTOGRAM)
    if valid is not None:
        histogram[CENTRE] -= d.numel() - valid.sum()


def buckets(d: Tensor) -> Tensor:
    """Histogram bucket of each d (float64, finite): its leading bits, int64, same shape."""
    bits = d.contiguous().view(torch.int64)
    lowest = (1023 + LOW_EXPONENT) << MANTISSA_BITS
    magnitude = (bits >> (52 - MANTISSA_BITS)) & ((1 << (11 + MANTISSA_BITS)) - 1)
    index = (magnitude - (lowest - 1)).clamp_(0, BUCKETS + 1)
    sign = bits >> 63  # 0, or -1 for a negative d
    return index.bitwise_xor_(sign).add_(CENTRE)


def _finish(
    state: Summary,
    batch: TokenBatch,
    pair: Pair,
    rows: Tensor,
    histogram: Tensor,
    extremes: RowExtremes,
    place: Place,
    groups: int | Tensor,
    centre: float,
) -> None:
    """From sums by sequence to the state: totals, products, prompts, extremes."""
    index, config = PAIR_INDEX[pair.name], state.config
    tokens = rows[:, COLUMN["core/n"]] + rows[:, COLUMN["tail/n"]]
    if sampler(batch.log_probs) == pair.q:
        rows[:, COLUMN["on_policy"]] = tokens
    both = {
        m: rows[:, COLUMN[f"core/{m}"]] + rows[:, COLUMN[f"tail/{m}"]] for m in ("d", "d2", "k3")
    }
    per_sequence = torch.stack([tokens, -both["d"], both["d2"] / 2, both["k3"]], dim=1)
    seen = (tokens > 0).double()
    prompted = seen if batch.prompt_ids is not None else torch.zeros_like(seen)
    counts = torch.stack([seen, prompted], dim=1)
    if isinstance(groups, int):
        gram = (per_sequence.T @ per_sequence).flatten()[GRAM_INDEX]
        state.sums[index, groups] += torch.cat([rows.sum(0), counts.sum(0), gram])
    else:
        outer = per_sequence.unsqueeze(2) * per_sequence.unsqueeze(1)
        full = torch.cat([rows, counts, outer.flatten(1)[:, GRAM_INDEX]], dim=1)
        state.sums[index].index_add_(0, groups, full)
    if batch.prompt_ids is not None and config.buckets_per_group:
        bucket = _prompt_bucket(batch.prompt_ids, config.buckets_per_group)
        bucket = bucket + groups * config.buckets_per_group
        state.prompts[index].flatten(0, 1).index_add_(0, bucket, per_sequence)
    state.histogram[index] += histogram

    torch.maximum(state.maxima[index], extremes.maxima(batch, pair), out=state.maxima[index])
    top = config.top
    # Micro-batches come in order, so among equal keys the earlier place stays first.
    state.tokens[index] = first_of(
        torch.cat([state.tokens[index], extremes.tokens(batch, pair, place, top)], dim=-2), top, 1
    )
    state.sequences[index] = first_of(
        torch.cat([state.sequences[index], sequence_records(per_sequence, centre, place, top)]),
        top,
        1,
    )


def _prompt_bucket(prompt_ids: Tensor, buckets_per_group: int) -> Tensor:
    """A bucket for each prompt by multiplicative hashing (Knuth, TAOCP 3, 6.4)."""
    mixed = prompt_ids * GOLDEN  # wraps around, as it should
    return ((mixed >> 32) & 0x7FFFFFFF) % buckets_per_group


def policy_counts(batch: TokenBatch, policy: str) -> Tensor:
    """[POLICY_COUNTS] over the tokens that count: what the values of one policy look like."""
    log_probs = batch.log_probs[policy]
    counts = log_probs.new_zeros(len(POLICY_COUNTS), dtype=torch.float64)
    for tile in tiles(batch):
        x = tile.of(log_probs).float()
        n = torch.tensor(x.numel())
        if batch.mask is not None:
            mask = tile.of(batch.mask)
            n = mask.sum()
            x = torch.where(mask, x, 0.0)
        bits = x.contiguous().view(torch.int32)
        nonzero = x.count_nonzero()
        positive = (x > POSITIVE_TOLERANCE).sum()
        odd = [(bits & low_bits).count_nonzero() for low_bits in (0xFFFF, 0x1FFF)]
        found = (n.to(x.device), nonzero, positive, nonzero - odd[0], nonzero - odd[1])
        counts += torch.stack(found)
    return counts


def accumulate(
    state: Summary,
    batch: TokenBatch,
    pairs: tuple[Pair, ...],
    *,
    place: Place,
    groups: int | Tensor = 0,
    centres: dict[str, float] | None = None,
) -> None:
    """Add a batch's tokens to a state, in place; arguments as for `add_pair`."""
    for policy in POLICIES:
        if any(policy in (pair.q, pair.p) for pair in pairs):
            state.policies[POLICIES.index(policy)] += policy_counts(batch, policy)
    for pair in pairs:
        centre = (centres or {}).get(pair.name, 0.0)
        add_pair(state, batch, pair, place=place, groups=groups, centre=centre)
