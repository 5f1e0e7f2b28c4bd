"""Files in the order of their steps: rank files and step files alike, few of them open."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from klmonitor_dumps.sequences import Rollout

LAST = 2**62
Read = Callable[[Path], Iterator[Rollout]]


def by_step(
    files: Sequence[Path], first_step: Callable[[Path], int | None], read: Read
) -> Iterator[Rollout]:
    """Sequences of all files, those of one step together.

    A file is opened when the steps before its first are done, so its own rows must be in order.

    Args:
        files: in an order of their own for rows of one step.
        first_step: the first step of a file without reading all of it; None: it has no row that
            can be read, and comes last, to say so.
        read: its sequences.
    """
    starts = ((first_step(path), index) for index, path in enumerate(files))
    heap = [(LAST if step is None else step, index) for step, index in starts]
    heapq.heapify(heap)
    opened: dict[int, tuple[Rollout, Iterator[Rollout]]] = {}
    while heap:
        step, index = heapq.heappop(heap)
        if index not in opened:
            rows = read(files[index])
            first = next(rows, None)
            if first is None:
                continue
            opened[index] = first, rows
            heapq.heappush(heap, (first.step, index))
            continue
        row: Rollout | None
        row, rows = opened.pop(index)
        while row is not None and row.step == step:
            yield row
            row = next(rows, None)
        if row is not None:
            opened[index] = row, rows
            heapq.heappush(heap, (row.step, index))
