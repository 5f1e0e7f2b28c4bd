"""A run as columns of numbers: small enough to hold, quick to send, exact enough to explain."""

from __future__ import annotations

import base64
import json
import math
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from klmonitor.dashboard.events import open_alerts, raised
from klmonitor.dashboard.glance import MEANS, glance
from klmonitor.dashboard.heat import ROWS
from klmonitor.dashboard.packing import pack
from klmonitor.dashboard.paircolumns import PairColumns, is_shown
from klmonitor.dashboard.pull import curves
from klmonitor.dashboard.rooms import around_shown, health_of, rooms
from klmonitor.numbers.explain import with_verdict
from klmonitor.record.around import AROUND, PLACES
from klmonitor.record.live import PASSING
from klmonitor.record.mutes import Mute
from klmonitor.record.notices import Notice
from klmonitor.record.rows import (
    alert_from_row,
    alert_to_row,
    finite_or_none,
    token_from_row,
    token_to_row,
)
from klmonitor.record.runfile import PENALTY, TERMS
from klmonitor.report import Alert, Cause, ExtremeToken, PairReport, Row
from klmonitor.rules.spikes import SPIKE

HIDDEN = "needs --token-text"
NOT_RECORDED = "was not recorded"
"""Why a token has no text."""
DRAWN_Z = 1e6
"""Scales: a threshold that is larger is no line on the page; it never fires either."""
NOTICE = "note"
"""The phase of a notice among alerts."""


class RunColumns:
    """The training steps of a run, in their order.

    Attributes:
        name: what the page calls it.
        meta: what ``run.json`` says was run.
        starts: every start of it, with versions and the rules in force.
        mutes: what people muted.
        steps: one a row.
        pairs: pair name -> columns.
        alerts: rows of alerts and, of phase ``"note"``, of notices, by arrival.
        generation: grows when rows that may have been sent already have changed.
        remarks: what there is to know of the record itself, a sentence an item.
        why_no_text: what to say of tokens that come without their text.
        health: how klmonitor fared, from each step on at which that changed.
        earlier: earlier starts in the run's directory.
    """

    def __init__(self, name: str, tokens_text: bool = True, why_no_text: str = HIDDEN) -> None:
        self.name = name
        self.meta: Mapping[str, Any] = {}
        self.starts: tuple[Any, ...] = ()
        self.mutes: Sequence[Mute] = ()
        self.steps: list[int] = []
        self.pairs: dict[str, PairColumns] = {}
        self.alerts: list[Row] = []
        self.generation = 0
        self.remarks: list[str] = []
        self._numbers: list[int] = []
        self._alert_keys: dict[tuple[Any, ...], int] = {}
        self.health: list[Row] = []
        self.earlier = 0
        self._tokens: dict[int, tuple[int, bytes]] = {}
        self._said: dict[int, dict[str, tuple[tuple[str, ...], Cause]]] = {}
        self._text = tokens_text
        self.why_no_text = NOT_RECORDED if tokens_text else why_no_text

    # --- filling -------------------------------------------------------------------------------
    def clear(self) -> None:
        """Forget everything: what comes is another record, or the same from its beginning."""
        self.steps, self.pairs, self.alerts, self.health = [], {}, [], []
        self._numbers, self._alert_keys, self._tokens, self._said = [], {}, {}, {}
        self.generation += 1

    def cut(self, step: int, number: int) -> None:
        """Forget what rows before that number said of that step and later ones."""
        rows = bisect_left(self.steps, step)
        del self.steps[rows:]
        for pair in self.pairs.values():
            pair.cut(rows)
        self._said = {one: said for one, said in self._said.items() if one < step}
        self.health = [one for one in self.health if one["step"] < step]
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
        said = {
            name: (tuple(body.get("open", ())), Cause(**body.get("cause", {})))
            for name, body in bodies.items()
            if "open" in body or "cause" in body
        }
        self._said.pop(step, None)
        if said:
            self._said[step] = said
        fared = health_of(row.get("run", {}))
        if fared is not None and last and fared != _without_step(self.health):
            self.health.append({"step": step, **fared})
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
        shown = around_shown(row, self._text)
        kept = [token_to_row(token) for token in tokens], shown, row.get(PLACES, {})
        packed = json.dumps(kept, separators=(",", ":"))
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
        return [token_from_row(row) for row in self._tokens_of(step)[0]]

    def _tokens_of(self, step: int) -> tuple[list[Row], list[Row], Row]:
        """Rows of a step's extreme tokens, of what stood around some, and means by place."""
        tokens, around, places = json.loads(self._tokens.get(step, (-1, b"[[],[],{}]"))[1])
        return tokens, around, places

    def report_at(self, pair: str, row: int) -> PairReport | None:
        """A pair's numbers in a row, None where it has none."""
        self.pairs[pair].settle()
        columns = self.pairs[pair].metrics
        every = {name: column[row] for name, column in columns.items()}
        values = {name: value for name, value in every.items() if not math.isnan(value)}
        if not values:
            return None
        mine = tuple(token for token in self.tokens_at(self.steps[row]) if token.pair == pair)
        open_kinds, cause = self._said.get(self.steps[row], {}).get(pair, ((), Cause()))
        term = str(self.meta.get(PENALTY, {}).get(pair, ""))
        found = PairReport(pair, values, extremes=mine, penalty=term, cause=cause)
        return with_verdict(found, open_kinds)

    def glances(self) -> Row:
        """Each pair in one line (`klmonitor.dashboard.glance`)."""
        told = [
            alert_from_row({key: value for key, value in row.items() if key != "lines"})
            for row in self.alerts
            if row["phase"] != NOTICE
        ]
        return {name: found for name in self.pairs if (found := self._glance(name, told))}

    def _glance(self, name: str, told: Sequence[Alert]) -> Row | None:
        pair = self.pairs[name]
        tokens = pair.metrics.get("tokens", ())
        row = next((r for r in range(len(tokens) - 1, -1, -1) if not math.isnan(tokens[r])), None)
        report = None if row is None else self.report_at(name, row)
        if row is None or report is None:
            return None
        means = {key: pair.metrics.get(f"{key}/mean", ())[: row + 1] for key in MEANS}
        mine = [alert for alert in told if alert.pair in (name, None)]
        events = open_alerts(mine, {name: report.open_kinds})
        k3 = pair.metrics.get("k3/mean", ())[: row + 1]
        still = raised(
            [alert for alert in mine if alert.pair], self.steps[: len(k3)], k3, events, self.mutes
        )
        return glance(report, self.steps[row], self.steps[-1], means, events, still)

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
        _, around, places = self._tokens_of(step)
        return {
            "explain": {name: report.explain(step) for name, report in reports.items() if report},
            "tokens": [_token_row(token) for token in self.tokens_at(step)],
            AROUND: around,
            "rooms": {
                name: rooms(report, places.get(name)) for name, report in reports.items() if report
            },
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
            "why_no_text": self.why_no_text,
            "glance": self.glances(),
            "health": self.health,
            "earlier": self.earlier,
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


def _without_step(health: Sequence[Row]) -> Row:
    """How klmonitor fared last."""
    return {name: value for name, value in health[-1].items() if name != "step"} if health else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _token_row(token: ExtremeToken) -> Row:
    """A token with what the table adds; ids as text, which no browser rounds."""
    row = token_to_row(token) | {
        "k1": finite_or_none(token.k1),
        "k3": finite_or_none(token.k3),
    }
    return row | {key: str(row[key]) for key in ("token_id", "prompt_id") if key in row}
