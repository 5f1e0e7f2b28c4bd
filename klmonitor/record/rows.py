"""Every row of a record: reports, tokens and alerts as JSON objects and back, within a budget."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import lru_cache, partial
from itertools import groupby
from math import copysign, floor, frexp, ldexp
from numbers import Integral, Real

from klmonitor.numbers.explain import with_verdict
from klmonitor.report import Alert, Cause, ExtremeToken, PairReport, Report, Row

PAIR_BYTES = 4096
"""What one pair of one report may take in ``steps.jsonl``."""
NUMBER_BYTES = 24
"""What a row's sequence number takes of that."""
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
    return _recorded(report, histograms)[1]


def recorded(report: Report) -> Report:
    """The report with the histograms that `encode_report` gives it."""
    return _recorded(report, True)[0]


def _recorded(report: Report, histograms: bool) -> tuple[Report, bytes]:
    limit = PAIR_BYTES * max(len(report.pairs), 1) - NUMBER_BYTES
    for bits in (None, 1, 0) if histograms else ():
        found = _with_histograms(report, partial(coarsen, bits=bits))
        line = encode_row(report_to_row(found))
        if len(line) <= limit:
            return found, line
    bare = _with_histograms(report, lambda _: ())
    return bare, encode_row(report_to_row(bare))


def _with_histograms(report: Report, change: Callable[[Histogram], Histogram]) -> Report:
    pairs = {
        name: pair.changed(histogram=change(pair.histogram)) for name, pair in report.pairs.items()
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


def shown_tokens(report: Report) -> list[ExtremeToken]:
    """The extreme tokens worth a line on disk: a few of each tail, or all.

    All of a pair that they dominate, or that an alert opened on: a replay of the rules may name
    them.
    """
    alerted = {alert.pair for alert in report.alerts}
    found = []
    for pair in report.pairs.values():
        whole = pair.name in alerted or pair["dominance/level"] >= 1
        found += list(pair.extremes) if whole else pair.most_extreme(RECORDED_TOKENS)
    return found


LARGEST = 1.7976931348623157e308
"""The largest finite float: what an infinity becomes in a row."""


def finite_or_none(value: float) -> float | None:
    """A value as JSON can hold it, exact and short.

    nan becomes None and an infinity the largest float of its sign, since JSON has neither; a
    whole number, which most counts are, loses its ``.0``.
    """
    value = float(value)
    if math.isnan(value):
        return None
    if value.is_integer() and abs(value) < 2**53 and (value or math.copysign(1, value) > 0):
        return int(value)
    return max(min(value, LARGEST), -LARGEST)


def shorten(edge: float) -> float | None:
    """A bucket's edge to three significant digits (0.5 %): a histogram is for drawing."""
    return _three_digits(edge) if edge else finite_or_none(edge)  # 0 and -0 are one key


@lru_cache(1024)
def _three_digits(value: float) -> float | None:
    return finite_or_none(float(f"{value:.3g}"))


def report_to_row(report: Report) -> Row:
    """A report as the JSON object of one ``steps.jsonl`` line; tokens and alerts go elsewhere."""
    return {
        "step": report.step,
        "first_step": report.first_step,
        "phase": report.phase,
        "time": finite_or_none(report.time),
        "pairs": {
            name: {
                "values": {
                    key: finite_or_none(value)
                    for key, value in pair.values.items()
                    if not math.isnan(value)
                },
                "histogram": {
                    "edges": [shorten(edge) for edge, _ in pair.histogram],
                    "counts": [finite_or_none(count) for _, count in pair.histogram],
                },
                **({"open": list(pair.open_kinds)} if pair.open_kinds else {}),
                **({"cause": vars(pair.cause)} if pair.cause.name else {}),
            }
            for name, pair in report.pairs.items()
        },
        "run": {key: finite_or_none(value) for key, value in report.run_values.items()},
    }


def report_from_row(row: Row) -> Report:
    """The inverse of `report_to_row`.

    Values come back exactly (a metric that was nan is absent and reads as nan), the histogram's
    edges to three significant digits.
    """
    pairs = {
        name: with_verdict(
            PairReport(
                name=name,
                values={key: as_float(value) for key, value in body["values"].items()},
                histogram=_histogram(body.get("histogram")),
                cause=Cause(**body.get("cause", {})),
            ),
            body.get("open", ()),
        )
        for name, body in row["pairs"].items()
    }
    return Report(
        step=int(row["step"]),
        first_step=int(row["first_step"]),
        phase=row.get("phase", "train"),
        time=as_float(row.get("time", 0.0)),
        pairs=pairs,
        run_values={key: as_float(value) for key, value in row.get("run", {}).items()},
    )


def _histogram(columns: Row | None) -> tuple[tuple[float, float], ...]:
    if not columns:
        return ()
    pairs = zip(columns["edges"], columns["counts"], strict=True)
    return tuple((float(edge), float(count)) for edge, count in pairs)


def as_float(value: float | None) -> float:
    """None was nan."""
    return math.nan if value is None else float(value)


LOG_FIELDS = ("log_ratio", "log_q", "log_p")
"""The measured fields of a token, nats."""


def token_to_row(token: ExtremeToken) -> Row:
    """A token as a JSON object, unknown fields left out."""
    row = vars(token) | {key: finite_or_none(getattr(token, key)) for key in LOG_FIELDS}
    return {key: value for key, value in row.items() if value is not None}


def token_from_row(row: Row) -> ExtremeToken:
    """The inverse of `token_to_row`."""
    return ExtremeToken(**{**row, **{key: as_float(row.get(key)) for key in LOG_FIELDS}})


def alert_to_row(alert: Alert) -> Row:
    """An alert as a JSON object, without the text of any token."""
    row = asdict(alert)
    row["values"] = {key: finite_or_none(value) for key, value in alert.values.items()}
    row["tokens"] = [token_to_row(replace(token, text=None)) for token in alert.tokens]
    row["kinds"] = list(alert.kinds)
    return row


def alert_from_row(row: Row) -> Alert:
    """The inverse of `alert_to_row`."""
    values = {key: as_float(value) for key, value in row.get("values", {}).items()}
    tokens = tuple(token_from_row(token) for token in row.get("tokens", ()))
    return Alert(**{**row, "step": int(row["step"]), "values": values, "tokens": tokens})
