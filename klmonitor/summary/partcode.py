"""The numbers of a part as bytes: their places, and the values that stand there.

The body is read in a dozen calls, whatever it holds: a driver may have hundreds of them a step.

    from each place to the next, a byte each (255: one of the wide ones)
    the smallest of `KINDS` that holds each value exactly, two bits each: low ones, then high ones
    wide steps, 4 bytes each; the values of each kind
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WIDE = 255
"""Steps from which they take more than a byte."""
KINDS = ("u1", "<u2", "<f4", "<f8")
"""Most values are counts of a histogram, and log-probs are float32."""


def coded(places: NDArray[np.int64], values: Floats) -> bytes:
    """The body of a part."""
    steps = np.diff(places, prepend=0)
    wide = steps >= WIDE
    with np.errstate(all="ignore"):
        kinds = np.select([_same(values, kind) for kind in KINDS[:-1]], range(3), 3).astype("u1")
    parts = (
        np.minimum(steps, WIDE).astype("u1"),
        np.packbits(np.concatenate((kinds & 1, kinds >> 1))),
        steps[wide].astype("<u4"),
        *(values[kinds == i].astype(kind) for i, kind in enumerate(KINDS)),
    )
    return b"".join(part.tobytes() for part in parts)


def _same(values: Floats, kind: str) -> NDArray[np.bool_]:
    """Which values a kind of number holds to the last bit."""
    bits = values.astype(kind).astype("<f8").view("<i8")
    found: NDArray[np.bool_] = bits == values.astype("<f8").view("<i8")
    return found


def decoded(body: bytes, n: int) -> tuple[NDArray[np.int64], Floats, int]:
    """Places and values from a body, and its length.

    Raises:
        ValueError: there is less of it.
    """
    at = n + (2 * n + 7) // 8
    steps = np.frombuffer(body, "u1", n).astype(np.int64)
    low, high = np.unpackbits(np.frombuffer(body, "u1", at - n, n), count=2 * n).reshape(2, n)
    wide = np.flatnonzero(steps == WIDE)
    steps[wide] = np.frombuffer(body, "<u4", wide.size, at)
    at += 4 * wide.size
    values, kinds = np.empty(n), low + 2 * high
    for i, kind in enumerate(KINDS):
        which = np.flatnonzero(kinds == i)
        some = np.frombuffer(body, kind, which.size, at)
        values[which] = some
        at += some.nbytes
    return steps.cumsum(), values, at
