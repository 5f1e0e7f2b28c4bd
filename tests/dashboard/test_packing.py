"""Numbers in four bytes that read as the double does, to four digits."""

import base64
import math
import struct
from decimal import ROUND_HALF_UP, Context, Decimal

from hypothesis import example, given
from hypothesis import strategies as st

from klmonitor.dashboard.packing import SINGLE_MAX, pack

BROWSER = Context(prec=4, rounding=ROUND_HALF_UP)
"""ECMAScript, Number.prototype.toPrecision: of two that are as near the larger."""


def single(value):
    return struct.unpack("<f", base64.b64decode(pack("f", [value])))[0]


@given(st.floats(1e-30, 1e30) | st.floats(-1e30, -1e-30) | st.integers(-99_999, 99_999).map(float))
@example(1234.5)
@example(1235.5)
@example(0.123449999999)
@example(0.12345)
@example(-2.00049999999)
def test_a_browser_gives_a_single_the_digits_that_python_gives_the_double(value):
    shown = float(BROWSER.create_decimal(Decimal(single(value))))
    assert shown == float(f"{value:.4g}")
    assert math.isclose(single(value), value, rel_tol=2.5e-7)


def test_what_fits_in_no_single_is_the_largest_and_nan_is_nan():
    assert single(math.inf) == single(1e300) > 1.7e38
    assert single(-math.inf) == -single(math.inf)
    assert single(math.inf) <= SINGLE_MAX * 1.001
    assert math.isnan(single(math.nan))
    assert single(0.0) == 0.0


@given(st.lists(st.floats(allow_nan=False), max_size=20))
def test_doubles_are_sent_as_they_are(values):
    data = base64.b64decode(pack("d", values))
    assert list(struct.unpack(f"<{len(values)}d", data)) == values
