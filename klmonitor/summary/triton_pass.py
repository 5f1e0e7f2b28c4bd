"""The pass over the tokens on a GPU: one kernel per pair, then sums over its blocks.

The same numbers as `chunked`: counts, histogram and extremes exactly, sums to float64 rounding. The
host only launches; it never waits for a value.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from klmonitor.pairs import Pair, sampler
from klmonitor.summary.batch import TokenBatch
from klmonitor.summary.collected import Collection, PairCollection
from klmonitor.summary.extremes import Place, RowExtremes
from klmonitor.summary.fields import CENTRE, COLUMN, HISTOGRAM, N_TOKEN_COLUMNS, POLICY_COUNTS
from klmonitor.summary.state import Summary
from klmonitor.summary.tiles import first_shape
from klmonitor.summary.triton_kernel import N_COLUMNS, sum_tokens

HEIGHT, WIDTH = 4, 256
"""Rows and columns of a program's block: four warps, each of which sums a row of its own. One shape
for all batches, so that the kernel is built once."""
COPIES = 32
"""Of the histogram: programs that count the same bucket at the same time wait for each other."""
CONSTANTS = {"copies": COPIES, "block_rows": HEIGHT, "block_columns": WIDTH}
MOST_COLUMNS = 65_535 * WIDTH
"""A grid has no more blocks along its second axis."""


def fits(batch: TokenBatch) -> bool:
    """Whether the kernel can take a batch: rows are sequences, and there are tokens."""
    rows, columns = batch.shape
    return batch.segments is None and rows > 0 and 0 < columns <= MOST_COLUMNS


def add(
    state: Summary, batch: TokenBatch, pairs: Sequence[Pair], place: Place, groups: int | Tensor
) -> None:
    """Add a batch that `fits` to a state, in place; arguments as for `passes.accumulate`."""
    collect(batch, pairs).add_to(state, place, groups)


def collect(batch: TokenBatch, pairs: Sequence[Pair]) -> Collection:
    """Sum a batch that `fits`.

    Args:
        batch: checked log-probs; the pairs' policies must be in it.
        pairs: which pairs.
    """
    inputs = {name: _adjacent(values) for name, values in batch.log_probs.items()}
    if batch.mask is None:
        mask = torch.empty(1, 1, dtype=torch.uint8, device=batch.device)  # never read
    else:
        mask = _adjacent(batch.mask).view(torch.uint8)
    policies: dict[str, Tensor] = {}
    found = []
    for pair in pairs:
        count = [name not in policies for name in (pair.q, pair.p)]
        sums, counts = _collect_pair(batch, pair, inputs, mask, count)
        found.append(sums)
        policies |= {
            name: own for name, own, new in zip((pair.q, pair.p), counts, count, strict=True) if new
        }
    return Collection(policies, found)


def _collect_pair(
    batch: TokenBatch,
    pair: Pair,
    inputs: dict[str, Tensor],
    mask: Tensor,
    count: Sequence[bool],
) -> tuple[PairCollection, Sequence[Tensor]]:
    """One pair's sums, and the counts of its two policies (zeros unless asked for)."""
    rows, columns = batch.shape
    blocks = -(-columns // WIDTH)
    behaviour = sampler(batch.log_probs)
    q, p, b = (inputs[name] for name in (pair.q, pair.p, behaviour))
    like = torch.empty(0, dtype=torch.float64, device=batch.device)
    partial = like.new_zeros(N_COLUMNS, blocks, rows)
    extremes = like.new_empty(2, rows, blocks)
    histogram = torch.zeros(COPIES, HISTOGRAM, dtype=torch.int32, device=batch.device)
    checked = first_shape(batch)
    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]  # torch leaves it untyped
        sum_tokens[(-(-rows // HEIGHT), blocks)](
            *(q, p, b, mask, partial, extremes, histogram),
            *(rows, columns, q.stride(0), p.stride(0), b.stride(0), mask.stride(0), *checked),
            *(int(flag) for flag in (batch.mask is not None, behaviour != pair.q, *count)),
            **CONSTANTS,
            enable_fp_fusion=True,
        )
    sums = partial.sum(1)
    counts = histogram.sum(0, dtype=torch.float64)
    counts[CENTRE] += sums[COLUMN["zero"]].sum()
    collection = PairCollection(
        batch=batch,
        pair=pair,
        behaviour=behaviour,
        rows=sums[:N_TOKEN_COLUMNS].T.contiguous(),
        histogram=counts,
        extremes=_extremes(extremes, columns),
    )
    return collection, torch.split(sums[N_TOKEN_COLUMNS:].sum(1), len(POLICY_COUNTS))


def _extremes(found: Tensor, columns: int) -> RowExtremes:
    """The blocks' extremes, [2, rows, blocks], in the order of their first tokens."""
    _, rows, blocks = found.shape
    row = torch.arange(rows, device=found.device).unsqueeze(1)
    first = torch.arange(blocks, device=found.device) * WIDTH
    widths = (columns - first).clamp_(max=WIDTH).expand(rows, -1)
    high, low = found.flatten(1)
    starts = (row * columns + first).flatten()
    return RowExtremes([starts], [widths.flatten()], [high], [low], width=WIDTH, exact=True)


def _adjacent(values: Tensor) -> Tensor:
    """[B, T] with columns next to each other; a slice of a longer row is taken as it is."""
    return values if values.stride(1) == 1 else values.contiguous()
