"""Columns of numbers as bytes, so that a page in four bytes a number reads as its report does."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Context, Decimal

import numpy as np
from numpy.typing import NDArray

SINGLE_MAX = 3.4e38
"""What is larger, infinity too, is sent as this: it fits in four bytes."""
SHOWN_DIGITS = 4
"""Significant digits in which sentences and legends give a number."""
_NEAR = 1e-3
"""Of the last digit: a single is at most 6e-4 of it off."""
_BROWSER = Context(prec=SHOWN_DIGITS, rounding=ROUND_HALF_UP)


def pack(code: str, values: Sequence[float]) -> str:
    """Numbers as little-endian bytes in base64: ``"d"`` eight each, ``"f"`` four; nan as it is.

    A single that a browser would round to other `SHOWN_DIGITS` than Python the double is moved by
    one unit in its last place.
    """
    numbers = np.array(values, dtype=np.float64)
    if code == "f":
        return base64.b64encode(_singles(numbers).astype("<f4").tobytes()).decode()
    return base64.b64encode(numbers.astype(f"<{code}").tobytes()).decode()


def _singles(numbers: NDArray[np.float64]) -> NDArray[np.float32]:
    singles = numbers.clip(-SINGLE_MAX, SINGLE_MAX).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scaled = np.abs(numbers) / 10.0 ** (np.floor(np.log10(np.abs(numbers))) - SHOWN_DIGITS + 1)
        doubtful = np.abs(scaled - np.floor(scaled) - 0.5) < _NEAR
    for at in np.flatnonzero(doubtful & (np.abs(numbers) < SINGLE_MAX)):
        wanted = float(f"{numbers[at]:.{SHOWN_DIGITS}g}")
        for _ in range(2):  # a tie that Python rounds to the even digit needs the second
            if _in_a_browser(float(singles[at])) != wanted:
                singles[at] = np.nextafter(singles[at], np.float32(wanted))
    return singles


def _in_a_browser(single: float) -> float:
    """``Number(x.toPrecision(4))``, which rounds a tie away from 0."""
    return float(_BROWSER.create_decimal(Decimal(single))) if math.isfinite(single) else single
