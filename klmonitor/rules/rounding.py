"""What the rounding of a log may have added to a rise.

Trackers and consoles write three or four decimals, and then .001 and .002 may be neighbours. The
unit of a series is that of the last digit in which any of its latest values is written; a number
that comes from tokens has all of float64's, so that nothing is taken off it.
"""

from __future__ import annotations

import math


def decimals(value: float) -> int:
    """Digits after the point in which a finite number is written at its shortest."""
    mantissa, _, exponent = repr(float(value)).partition("e")
    fraction = mantissa.partition(".")[2]
    return max(0, len(fraction) - int(exponent or 0))


def unit(most_decimals: float) -> float:
    """The unit of the last of so many digits after the point."""
    return float(10.0**-most_decimals)


def beyond_rounding(rise: float, k3: float, unit: float) -> float:
    """A rise of log k3 to `k3`, less what rounding both ends to `unit` may have added to it.

    Half a unit may have been added to k3 and half a unit taken off what it is compared with, a
    unit in all. A fall is returned as it is.
    """
    if rise <= 0 or not unit > 0:
        return rise
    added = -math.log1p(-unit / k3) if unit < k3 else math.inf
    return max(rise - added, 0.0)
