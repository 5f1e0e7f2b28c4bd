"""What a pass over a batch collects of one pair, and how that enters a state.

The plain pass (`chunked`) fills three things: sums over each sequence, the histogram of d, the
extremes of short stretches of tokens. What follows from them is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from klmonitor.pairs import PAIR_INDEX, POLICIES, Pair
from klmonitor.summary.batch import TokenBatch
from klmonitor.summary.extremes import Place, RowExtremes, sequence_rows
from klmonitor.summary.fields import COLUMN, GRAM, PER_SEQUENCE
from klmonitor.summary.state import Summary, first_of

GOLDEN = 0x9E3779B97F4A7C15 - 2**64
"""2^64 over the golden ratio, as a signed integer."""
GRAM_INDEX = [
    len(PER_SEQUENCE) * PER_SEQUENCE.index(a) + PER_SEQUENCE.index(b)
    for a, b in (name.split(".") for name in GRAM)
]
TAIL = COLUMN["tail/n"]
"""Columns of ``core/*`` come first; those of ``tail/*`` follow in the same order."""
SOURCES = [COLUMN[f"core/{name}"] for name in ("n", "d", "d2", "k3")]
SCALES = (1.0, -1.0, 0.5, 1.0)
"""(T, S1, S2, S3) = SCALES x the sums of these columns."""


@dataclass(frozen=True, kw_only=True)
class PairCollection:
    """Sums of one pair over one batch.

    Attributes:
        batch: whose tokens.
        pair: which pair.
        behaviour: the policy that drew the tokens.
        rows: [sequences, N_TOKEN_COLUMNS] sums over each sequence. Pure counts may be in any row
            where all sequences are of one group.
        histogram: [HISTOGRAM] counts of d.
        extremes: the largest and smallest d of every tile row.
    """

    batch: TokenBatch
    pair: Pair
    behaviour: str
    rows: Tensor
    histogram: Tensor
    extremes: RowExtremes = field(default_factory=RowExtremes)

    def add_to(self, state: Summary, place: Place, groups: int | Tensor) -> None:
        """Add totals, products over sequences, prompts and extremes to a state, in place.

        Args:
            state: what is added to.
            place: rank and micro-batch.
            groups: row of the group, or int64 [sequences].
        """
        index, rows, top = PAIR_INDEX[self.pair.name], self.rows, state.config.top
        sources, scales, gram_index = _constants()
        both = rows[:, :TAIL] + rows[:, TAIL : 2 * TAIL]
        per_sequence = both.index_select(1, sources) * scales
        if self.behaviour == self.pair.q:
            rows[:, COLUMN["on_policy"]] = per_sequence[:, 0]
        seen = (per_sequence[:, :1] > 0).double()
        prompted = seen if self.batch.prompt_ids is not None else torch.zeros_like(seen)
        if isinstance(groups, int):
            gram = (per_sequence.T @ per_sequence).flatten().index_select(0, gram_index)
            total = torch.cat([rows.sum(0), seen.sum(0), prompted.sum(0), gram])
            state.sums[index, groups] += total
        else:
            outer = per_sequence.unsqueeze(2) * per_sequence.unsqueeze(1)
            gram = outer.flatten(1).index_select(1, gram_index)
            full = torch.cat([rows, seen, prompted, gram], dim=1)
            state.sums[index].index_add_(0, groups, full)
        if self.batch.prompt_ids is not None and state.config.buckets_per_group:
            bucket = _prompt_bucket(self.batch.prompt_ids, state.config.buckets_per_group)
            bucket = bucket + groups * state.config.buckets_per_group
            prompts = torch.from_numpy(state.arrays["prompts"][index])
            prompts.flatten(0, 1).index_add_(0, bucket, per_sequence)
        histogram = state.arrays["histogram"][index]
        histogram += self.histogram.numpy()
        found = self.extremes.maxima(self.batch, self.pair)
        torch.maximum(state.maxima[index], found, out=state.maxima[index])
        # Micro-batches come in order, so among equal keys the earlier place stays first.
        tokens = self.extremes.tokens(self.batch, self.pair, place, top)
        state.tokens[index] = first_of(torch.cat([state.tokens[index], tokens], dim=-2), top, 1)
        sequences = sequence_rows(per_sequence, place, top)
        state.sequences[index] = first_of(torch.cat([state.sequences[index], sequences]), top, 1)


@dataclass(frozen=True)
class Collection:
    """What a pass collects of a batch.

    Attributes:
        policies: policy -> [POLICY_COUNTS].
        pairs: the pairs' sums; empty where the batch has no tokens.
    """

    policies: Mapping[str, Tensor]
    pairs: Sequence[PairCollection]

    def add_to(self, state: Summary, place: Place, groups: int | Tensor) -> None:
        """Add everything to a state, in place; arguments as for `passes.accumulate`."""
        for name, counts in self.policies.items():
            state.policies[POLICIES.index(name)] += counts
        for sums in self.pairs:
            sums.add_to(state, place, groups)


@cache
def _constants() -> tuple[Tensor, Tensor, Tensor]:
    """`SOURCES`, `SCALES`, `GRAM_INDEX` as tensors."""
    sources, gram = (torch.tensor(index, device="cpu") for index in (SOURCES, GRAM_INDEX))
    return sources, torch.tensor(SCALES, dtype=torch.float64, device="cpu"), gram


def _prompt_bucket(prompt_ids: Tensor, buckets_per_group: int) -> Tensor:
    """A bucket for each prompt by multiplicative hashing (Knuth, TAOCP 3, 6.4)."""
    mixed = prompt_ids * GOLDEN  # wraps around, as it should
    return ((mixed >> 32) & 0x7FFFFFFF) % buckets_per_group
