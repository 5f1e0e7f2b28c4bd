"""Room within ``max_disk``: old steps are thinned, what alerts and people said is kept.

Of the steps before the newest `WHOLE` of a file, those that 2, 4, 8, ... divides are kept, and
those that opened or worsened an alert: what is kept does not depend on how often room was short.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from klmonitor.record.fresh import replaced

WHOLE = 0.25
"""The share of the room that the newest steps have."""
TARGET = 0.6
"""The share of the limit that is taken after thinning: it is not due again at once."""
MOST_HALVINGS = 40
_STEP = re.compile(rb'"step":\s*(-?\d+)')
_HEAD = 256
"""Bytes of a row that hold its step."""


@dataclass(frozen=True)
class Thinned:
    """What thinning came to.

    Attributes:
        first: the first step that was taken out; None: nothing was.
        step: the first step that is whole.
        stride: steps before that were kept where it divides them.
        count: rows that were taken out.
        freed: bytes.
    """

    first: int | None
    step: int
    stride: int
    count: int = 0
    freed: int = 0


@dataclass(frozen=True)
class _Line:
    data: bytes
    step: int | None

    def is_kept(self, before: int, stride: int, alerted: frozenset[int]) -> bool:
        """Whether it stays: no report, new, divided by the stride, or of an alert."""
        step = self.step
        return step is None or step >= before or step % stride == 0 or step in alerted


def thin(steps: Path, tokens: Path, alerts: Path, room: int) -> Thinned:
    """Take old rows out of two files until both fit.

    Args:
        steps: the file of reports.
        tokens: the file of tokens.
        alerts: whose steps are kept.
        room: bytes that the two may take.

    Raises:
        OSError: it failed; each file is whole, as it was or thinned.
    """
    before = _newest_whole(steps, room)
    alerted = frozenset(line.step for line in _lines(alerts) if line.step is not None)
    sizes: Counter[int] = Counter()
    fixed = 0
    for path in (steps, tokens):
        for line in _lines(path):
            if line.is_kept(before, 1 << MOST_HALVINGS, alerted) or not line.step:
                fixed += len(line.data)
            else:
                sizes[(line.step & -line.step).bit_length() - 1] += len(line.data)
    halvings = 1
    while halvings < MOST_HALVINGS and fixed + _from(sizes, halvings) > room:
        halvings += 1
    found = Thinned(None, before, 1 << halvings)
    for path in (steps, tokens):
        found = _rewrite(path, found, alerted)
    return found


def _from(sizes: Counter[int], halvings: int) -> int:
    return sum(size for zeros, size in sizes.items() if zeros >= halvings)


def _newest_whole(path: Path, room: int) -> int:
    """The first step of the newest rows."""
    rest = path.stat().st_size - int(WHOLE * room)
    for line in _lines(path):
        rest -= len(line.data)
        if rest < 0 and line.step is not None:
            return line.step
    return 0


def _rewrite(path: Path, found: Thinned, alerted: frozenset[int]) -> Thinned:
    if not path.exists():
        return found
    first, count, freed = found.first, found.count, found.freed
    mode = path.stat().st_mode & 0o777
    with replaced(path, mode) as file:
        for line in _lines(path):
            if line.is_kept(found.step, found.stride, alerted):
                file.write(line.data)
            else:
                assert line.step is not None
                first = line.step if first is None else min(first, line.step)
                count, freed = count + 1, freed + len(line.data)
    return Thinned(first, found.step, found.stride, count, freed)


def _lines(path: Path) -> Iterator[_Line]:
    """The rows of a file; those without a step, and marks, are of no step."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for data in file:
            head = data[:_HEAD]
            found = None if b'"row":' in head else _STEP.search(head)
            yield _Line(data, None if found is None else int(found[1]))
