"""Reports as lines of JSON that keep to a budget of bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from math import copysign, floor, frexp, ldexp
from numbers import Integral, Real

from klmonitor.report import ExtremeToken, PairReport, Report, Row, report_to_row

PAIR_BYTES = 4096
"""What one pair of one report may take in ``steps.jsonl``."""
RECORDED_TOKENS = 4
"""Extreme tokens of each tail that are recorded at a step that is not dominated by any."""

Histogram = Sequence[tuple[float, float]]


def encode_row(row: Row) -> bytes:
    """A row as one line of ASCII, newline included; lone surrogates are escaped.

    Raises:
        TypeError, ValueError: the row holds something that JSON has no word for.
    """
    text = json.dumps(row, separators=(",", ":"), allow_nan=False, default=_plain)
    return text.encode("ascii") + b"\n"


def _plain(value: object) -> int | float:
    """A number of another library, which JSON does not know, as one of Python's."""
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise TypeError(f"cannot store a {type(value).__name__} in a row: {value!r}")


def encode_report(report: Report, histograms: bool = True) -> bytes:
    """A report as a line of ``steps.jsonl``.

    Scalars are exact. Histograms are made coarser, or left out, where the row would otherwise
    take more than `PAIR_BYTES` a pair.
    """
    limit = PAIR_BYTES * max(len(report.pairs), 1)
    for bits in (None, 1, 0) if histograms else ():
        line = encode_row(report_to_row(_with_histograms(report, partial(coarsen, bits=bits))))
        if len(line) <= limit:
            return line
    return encode_row(report_to_row(_with_histograms(report, lambda _: ())))


def _with_histograms(report: Report, change: Callable[[Histogram], Histogram]) -> Report:
    pairs = {
        name: replace(pair, histogram=change(pair.histogram)) for name, pair in report.pairs.items()
    }
    return replace(report, pairs=pairs)


def coarsen(histogram: Histogram, bits: int | None) -> Histogram:
    """A histogram with 2^bits buckets an octave, sums kept; None leaves it as it is."""
    if bits is None:
        return histogram

    def lower(bucket: tuple[float, float]) -> tuple[float, float]:
        sign = copysign(1.0, bucket[0])
        mantissa, exponent = frexp(abs(bucket[0]))
        return sign, ldexp(floor(ldexp(mantissa, bits + 1)), exponent - bits - 1)

    return tuple(
        (sign * edge, sum(count for _, count in buckets))
        for (sign, edge), buckets in groupby(histogram, lower)
    )


def recorded_tokens(pair: PairReport, alerted: bool = False) -> list[ExtremeToken]:
    """The extreme tokens worth a line on disk: a few of each tail, or all.

    All of a dominated or alerted step, which a replay of the rules may name.
    """
    if alerted or pair["dominance/level"] >= 1:
        return list(pair.extremes)
    return pair.most_extreme(RECORDED_TOKENS)
