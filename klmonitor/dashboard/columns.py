"""A run as columns of numbers: small enough to hold, quick to send, exact enough to explain."""

from __future__ import annotations

import base64
import json
import math
import time
from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from klmonitor.dashboard.heat import ROWS, heat_columns
from klmonitor.dashboard.pull import curves
from klmonitor.numbers.explain import with_verdict
from klmonitor.record.live import PASSING
from klmonitor.record.notices import Notice
from klmonitor.record.rows import (
    alert_to_row,
    as_float,
    finite_or_none,
    token_from_row,
    token_to_row,
)
from klmonitor.record.runfile import PENALTY, TERMS
from klmonitor.report import Alert, ExtremeToken, PairReport, Row
from klmonitor.rules.spikes import SPIKE

ESTIMATORS = ("k1", "k2", "k3")
SHOWN = frozenset(
    (
        *(f"{k}/{what}" for k in ESTIMATORS for what in ("mean", "se", "var", "running_var")),
        *(f"log_ratio/{q}" for q in ("p0.1", "p1", "p25", "p50", "p75", "p99", "p99.9")),
        *(f"dominance/{k}/{what}" for k in ("k1", "k3") for what in ("top_share", "level")),
        *("outliers/k1", "outliers/k3", "outliers/rate", "spike/z"),
        *("sequence/k1", "sequence/k3", "tokens", "sequences", "penalty/dead_share"),
    )
)
"""Metrics that the page draws, beside ``group/*``."""
QUARTILES = {"log_ratio/p25": 0.25, "log_ratio/p75": 0.75}
"""Metrics that are read off the histogram, and their probabilities."""
MOST_WAITING = 4096
"""Histograms that wait: a few megabytes."""
DRAWN_Z = 1e6
"""Scales: a threshold that is larger is no line on the page; it never fires either."""
NAN = math.nan
NOTICE = "note"
"""The phase of a notice among alerts."""


def is_shown(metric: str) -> bool:
    """Whether the page draws a metric."""
    return metric in SHOWN or metric.startswith("group/")


@dataclass
class PairColumns:
    """One pair: every metric over the rows of the run, and its heat map.

    Histograms wait until they are asked for: many together cost a fraction of each alone.
    """

    rows: int = 0
    metrics: dict[str, array[float]] = field(default_factory=dict)
    _heat: bytearray = field(default_factory=bytearray)
    _waiting: dict[int, Row | None] = field(default_factory=dict)

    @property
    def heat(self) -> bytearray:
        """`ROWS` bytes a row."""
        self.settle()
        return self._heat

    def append(self, body: Row | None) -> None:
        """Add a row."""
        values = {} if body is None else body["values"]
        for name in values:
            if name not in self.metrics:
                self.metrics[name] = array("d", [NAN]) * self.rows
        for name, column in self.metrics.items():
            value = values.get(name)
            column.append(NAN if value is None else value)
        self._waiting[self.rows] = (body or {}).get("histogram")
        self.rows += 1
        if len(self._waiting) >= MOST_WAITING:
            self.settle()

    def put(self, row: int, body: Row | None) -> None:
        """Fill a row that exists in every column."""
        values = {} if body is None else body["values"]
        for name in values:
            if name not in self.metrics:
                self.metrics[name] = array("d", [NAN]) * self.rows
        for name, column in self.metrics.items():
            column[row] = as_float(values.get(name))
        self._waiting[row] = (body or {}).get("histogram")

    def insert(self, row: int) -> None:
        """Make room for a row of nan."""
        self.settle()
        self._heat[row * ROWS : row * ROWS] = bytes(ROWS)
        for column in self.metrics.values():
            column.insert(row, NAN)
        self.rows += 1

    def cut(self, rows: int) -> None:
        """Keep so many rows."""
        self.settle()
        del self._heat[rows * ROWS :]
        for column in self.metrics.values():
            del column[rows:]
        self.rows = rows

    def settle(self) -> None:
        """Take in the histograms that wait."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, {}
        self._heat.extend(bytes(ROWS * self.rows - len(self._heat)))
        found = [(one["edges"], one["counts"]) if one else ((), ()) for one in waiting.values()]
        heat, quartiles = heat_columns(found, tuple(QUARTILES.values()))
        for at, row in enumerate(waiting):
            self._heat[row * ROWS : (row + 1) * ROWS] = heat[at * ROWS : (at + 1) * ROWS]
        for at, name in enumerate(QUARTILES):
            values = quartiles[:, at]
            if name not in self.metrics and np.isnan(values).all():
                continue
            column = self.metrics.setdefault(name, array("d", [NAN]) * self.rows)
            for row, value in zip(waiting, values.tolist(), strict=True):
                column[row] = value


class RunColumns:
    """The training steps of a run, in their order.

    Attributes:
        name: what the page calls it.
        meta: what ``run.json`` says was run.
        starts: every start of it, with versions and the rules in force.
        steps: one a row.
        pairs: pair name -> columns.
        alerts: rows of alerts and, of phase ``"note"``, of notices, by arrival.
        generation: grows when rows that may have been sent already have changed.
        remarks: what there is to know of the record itself, a sentence an item.
    """

    def __init__(self, name: str, tokens_text: bool = True) -> None:
        self.name = name
        self.meta: Mapping[str, Any] = {}
        self.starts: tuple[Any, ...] = ()
        self.steps: list[int] = []
        self.pairs: dict[str, PairColumns] = {}
        self.alerts: list[Row] = []
        self.generation = 0
        self.remarks: list[str] = []
        self._numbers: list[int] = []
        self._alert_keys: dict[tuple[Any, ...], int] = {}
        self._tokens: dict[int, tuple[int, bytes]] = {}
        self._open: dict[int, dict[str, tuple[str, ...]]] = {}
        self._text = tokens_text

    # --- filling -------------------------------------------------------------------------------
    def clear(self) -> None:
        """Forget everything: what comes is another record, or the same from its beginning."""
        self.steps, self.pairs, self.alerts = [], {}, []
        self._numbers, self._alert_keys, self._tokens, self._open = [], {}, {}, {}
        self.generation += 1

    def cut(self, step: int, number: int) -> None:
        """Forget what rows before that number said of that step and later ones."""
        rows = bisect_left(self.steps, step)
        del self.steps[rows:]
        for pair in self.pairs.values():
            pair.cut(rows)
        self._open = {one: kinds for one, kinds in self._open.items() if one < step}
        self._tokens = {
            one: kept for one, kept in self._tokens.items() if one < step or kept[0] >= number
        }
        kept_rows = [
            (key, self.alerts[at], self._numbers[at])
            for key, at in self._alert_keys.items()
            if _stays(self.alerts[at]) or key[0] < step or self._numbers[at] >= number
        ]
        self.alerts = [row for _, row, _ in kept_rows]
        self._numbers = [own for _, _, own in kept_rows]
        self._alert_keys = {key: at for at, (key, _, _) in enumerate(kept_rows)}
        self.generation += 1

    def add_row(self, row: Row) -> None:
        """A row of ``steps.jsonl``; of a step that comes again, the later row counts."""
        if row.get("phase", "train") != "train":
            return
        step = int(row["step"])
        bodies: Row = row["pairs"]
        at = bisect_left(self.steps, step)
        again = at < len(self.steps) and self.steps[at] == step
        last = at == len(self.steps)
        if not last:
            self.generation += 1
        for name in bodies:
            if name not in self.pairs:
                self.pairs[name] = PairColumns(len(self.steps))
        if not again:
            self.steps.insert(at, step)
        open_kinds = {name: tuple(body.get("open", ())) for name, body in bodies.items()}
        if any(open_kinds.values()):
            self._open[step] = open_kinds
        for name, pair in self.pairs.items():
            if last:
                pair.append(bodies.get(name))
                continue
            if not again:
                pair.insert(at)
            pair.put(at, bodies.get(name))

    def add_tokens(self, row: Row) -> None:
        """A row of ``tokens.jsonl``."""
        if row.get("phase", "train") != "train":
            return
        tokens = [token_from_row(token) for token in row["tokens"]]
        if not self._text:
            tokens = [replace(token, text=None) for token in tokens]
        packed = json.dumps([token_to_row(token) for token in tokens], separators=(",", ":"))
        self._tokens[int(row["step"])] = row.get("seq", -1), packed.encode()

    def add_alert(self, alert: Alert, number: int = -1) -> None:
        """A row of ``alerts.jsonl``; the same finding of a resumed run replaces the earlier."""
        key = (alert.step, alert.kind, alert.pair, alert.phase)
        self._put_alert(key, alert_to_row(alert) | {"lines": alert.lines}, number)

    def add_notice(self, notice: Notice, number: int = -1) -> None:
        """A row of ``notes.jsonl``, on the alerts' time line."""
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(notice.time))
        alert = Alert(notice.step, notice.kind, "info", None, notice.text, phase=NOTICE)
        row = alert_to_row(alert) | {"lines": [("when", when)]}
        self._put_alert((notice.step, notice.kind, notice.text), row, number)

    def _put_alert(self, key: tuple[Any, ...], row: Row, number: int) -> None:
        if key in self._alert_keys:
            at = self._alert_keys[key]
            self.alerts[at], self._numbers[at] = row, number
            self.generation += 1
        else:
            self._alert_keys[key] = len(self.alerts)
            self.alerts.append(row)
            self._numbers.append(number)

    # --- asking --------------------------------------------------------------------------------
    def index_of(self, step: int) -> int | None:
        """The row of a step."""
        at = bisect_left(self.steps, step)
        return at if at < len(self.steps) and self.steps[at] == step else None

    def tokens_at(self, step: int) -> list[ExtremeToken]:
        """The extreme tokens of a step."""
        packed = self._tokens.get(step, (-1, b"[]"))[1]
        return [token_from_row(row) for row in json.loads(packed)]

    def report_at(self, pair: str, row: int) -> PairReport | None:
        """A pair's numbers in a row, None where it has none."""
        self.pairs[pair].settle()
        columns = self.pairs[pair].metrics
        found = {name: column[row] for name, column in columns.items()}
        values = {name: value for name, value in found.items() if not math.isnan(value)}
        if not values:
            return None
        mine = tuple(token for token in self.tokens_at(self.steps[row]) if token.pair == pair)
        open_kinds = self._open.get(self.steps[row], {}).get(pair, ())
        term = str(self.meta.get(PENALTY, {}).get(pair, ""))
        return with_verdict(PairReport(pair, values, extremes=mine, penalty=term), open_kinds)

    def spike_threshold(self) -> Row:
        """``z`` of the spike rule in scales, None where it was off, and whether that is `known`.

        A record that does not say, and TensorBoard's files, get the default.
        """
        rules = self.starts[-1].get("rules") if self.starts else None
        if rules is None:
            return {"z": SPIKE.thresholds["z"], "known": False}
        z = rules["thresholds"].get(SPIKE.kind, {}).get("z")
        return {"z": z if z is not None and abs(z) < DRAWN_Z else None, "known": True}

    def details(self, step: int) -> Row:
        """The verdict on a step and its extreme tokens, as the page shows them."""
        row = self.index_of(step)
        if row is None:
            return {"explain": {}, "tokens": []}
        reports = {name: self.report_at(name, row) for name in self.pairs}
        return {
            "explain": {name: report.explain(step) for name, report in reports.items() if report},
            "tokens": [_token_row(token) for token in self.tokens_at(step)],
        }

    def data(self, rows: int = 0, alerts: int = 0, generation: int | None = None) -> Row:
        """What came after `rows` rows and `alerts` alerts; all of it for another generation."""
        if generation != self.generation or rows > len(self.steps):
            rows = alerts = 0
        for pair in self.pairs.values():
            pair.settle()
        return {
            "name": self.name,
            "meta": {str(k): _text(v) for k, v in self.meta.items() if k != TERMS},
            "starts": self.starts,
            "spike": self.spike_threshold(),
            "pull": curves(self.meta.get(TERMS)),
            "remarks": self.remarks,
            "generation": self.generation,
            "rows": rows,
            "steps": pack("d", self.steps[rows:]),
            "pairs": {
                name: {
                    "heat": base64.b64encode(pair.heat[rows * ROWS :]).decode(),
                    "metrics": {
                        metric: pack("f", column[rows:])
                        for metric, column in pair.metrics.items()
                        if is_shown(metric)
                    },
                }
                for name, pair in self.pairs.items()
            },
            "alert_rows": alerts,
            "alerts": self.alerts[alerts:],
        }


def _stays(row: Row) -> bool:
    """Whether it is a notice that belongs to no steps: what people said."""
    return row["phase"] == NOTICE and row["kind"] not in PASSING


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


SINGLE_MAX = 3.4e38
"""What is larger, infinity too, is sent as this: it fits in four bytes."""


def pack(code: str, values: Sequence[float]) -> str:
    """Numbers as little-endian bytes in base64: ``"d"`` eight each, ``"f"`` four; nan as it is."""
    numbers = np.array(values, dtype=np.float64)
    if code == "f":
        numbers = numbers.clip(-SINGLE_MAX, SINGLE_MAX)
    return base64.b64encode(numbers.astype(f"<{code}").tobytes()).decode()


def _token_row(token: ExtremeToken) -> Row:
    """A token with what the table adds; ids as text, which no browser rounds."""
    row = token_to_row(token) | {
        "k1": finite_or_none(token.k1),
        "k3": finite_or_none(token.k3),
    }
    return row | {key: str(row[key]) for key in ("token_id", "prompt_id") if key in row}
