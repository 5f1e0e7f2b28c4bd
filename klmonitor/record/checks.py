"""What a row of each file must be: looked at as a whole, before anything is made of it.

The rule for rows of newer versions: fields are added, their meaning is never changed. So a field
that is not known here is left out, and so is a pair;
a row that has a ``format`` above `FORMAT`, or a ``row`` that is not known, is skipped and counted.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from klmonitor.pairs import PAIR_INDEX
from klmonitor.record.around import AROUND, MOST_PLACES, PLACES
from klmonitor.record.marks import DROPPED, RESUMED, ROW, THINNED, Mark
from klmonitor.record.notices import Notice, notice_from_row
from klmonitor.record.rows import alert_from_row
from klmonitor.record.runfile import FORMAT
from klmonitor.report import Alert, Cause, ExtremeToken, Row

MOST = 2**53
"""The largest whole number that every reader of JSON holds exactly."""
LAST_TIME = 2.0**35
"""Seconds since the epoch, the year 3058."""
PHASES = ("open", "worse", "end")
_NUMBERS = {int, float, type(None)}
_ALERT_FIELDS = {field.name for field in fields(Alert)}
_TOKEN_FIELDS = {field.name for field in fields(ExtremeToken)}
_CAUSE_FIELDS = {field.name for field in fields(Cause)}


def of_this_version(row: Row) -> Row:
    """A row that no newer format has marked as its own.

    Raises:
        ValueError: it is of a newer one.
    """
    if row.get("format", FORMAT) != FORMAT and whole(row["format"]) > FORMAT:
        raise ValueError("of a newer format")
    return row


def whole(value: Any) -> int:
    """A whole number.

    Raises:
        ValueError: it is none, or too large to be exact.
    """
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int or abs(value) > MOST:
        raise ValueError(f"{value!r:.40} is no whole number")
    return value


def number(value: Any) -> float:
    """A finite number.

    Raises:
        ValueError: it is none.
    """
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.40} is no number")
    return float(value)


def word(value: Any) -> str:
    """A text.

    Raises:
        ValueError: it is none.
    """
    if type(value) is not str:
        raise ValueError(f"{value!r:.40} is no text")
    return value


def when(value: Any) -> float:
    """Seconds since the epoch.

    Raises:
        ValueError: it is no date.
    """
    if not 0 <= number(value) <= LAST_TIME:
        raise ValueError(f"{value!r:.40} is no time")
    return float(value)


def sequence_of(row: Row) -> int:
    """A row's sequence number, -1 of a row of version 1 or of a person.

    Raises:
        ValueError: it is none.
    """
    return whole(row["seq"]) if "seq" in row else -1


def numbers(values: Any) -> dict[str, float | None]:
    """Names with finite numbers; None is nan.

    Raises:
        ValueError: something is no number.
    """
    if type(values) is not dict or not _NUMBERS.issuperset(map(type, values.values())):
        raise ValueError("no table of numbers")
    found = [value for value in values.values() if value is not None]
    if not math.isfinite(sum(found)):  # two of the largest make an infinity, so look at each
        for value in found:
            number(value)
    return values


def report_row(row: Row) -> Row:
    """A row of ``steps.jsonl`` that is a report: what is known of it.

    Raises:
        ValueError, KeyError, TypeError, OverflowError: it is none.
    """
    pairs = _table(row["pairs"])
    known = {name: _pair(body) for name, body in pairs.items() if name in PAIR_INDEX}
    if pairs and not known:
        raise ValueError("no pair that is known")
    return {
        "seq": sequence_of(row),
        "step": whole(row["step"]),
        "first_step": whole(row["first_step"]),
        "phase": word(row.get("phase", "train")),
        "time": when(row.get("time", 0.0)),
        "pairs": known,
        "run": numbers(row.get("run", {})),
    }


def _table(value: Any) -> Row:
    if type(value) is not dict:
        raise ValueError("no object")
    return value


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise ValueError("no list")
    return value


def _pair(body: Any) -> Row:
    found: Row = {"values": numbers(_table(body)["values"])}
    histogram = body.get("histogram")
    if histogram:
        edges, counts = _list(histogram["edges"]), _list(histogram["counts"])
        if len(edges) != len(counts) or not {int, float}.issuperset(map(type, edges + counts)):
            raise ValueError("no histogram")
        if not math.isfinite(sum(edges) + sum(counts)) or any(count < 0 for count in counts):
            raise ValueError("no histogram")
        found["histogram"] = {"edges": edges, "counts": counts}
    if "open" in body:
        found["open"] = [word(kind) for kind in _list(body["open"])]
    if "cause" in body:
        found["cause"] = _cause(_table(body["cause"]))
    return found


def _cause(body: Row) -> Row:
    known = {name: value for name, value in body.items() if name in _CAUSE_FIELDS}
    return {
        "name": word(known.get("name", "")),
        "text": word(known.get("text", "")),
        "impossible": known.get("impossible") is True,
    }


def mark_of(row: Row) -> Mark:
    """A row of ``steps.jsonl`` that is a mark.

    Raises:
        ValueError, KeyError: it is none that is known.
    """
    kind, step = word(row[ROW]), row.get("step")
    if kind not in (RESUMED, DROPPED, THINNED):
        raise ValueError("a mark of a newer version")
    needed = kind in (RESUMED, THINNED)
    return Mark(
        kind,
        whole(step) if needed or step is not None else None,
        whole(row.get("count", 0)),
        word(row.get("why", "")),
        whole(row["first"]) if kind == THINNED else None,
        max(whole(row.get("stride", 1)), 1),
        when(row.get("time", 0.0)),
    )


def token_row(row: Any) -> Row:
    """One token of a row: what is known of it.

    Raises:
        ValueError, KeyError: it is none.
    """
    known = {name: value for name, value in _table(row).items() if name in _TOKEN_FIELDS}
    for name in ("rank", "micro_batch", "sequence", "position"):
        whole(known[name])
    for name in ("log_ratio", "log_q", "log_p"):
        if known.get(name) is not None:
            number(known[name])
    for name in ("text", "worker"):
        if known.get(name) is not None:
            word(known[name])
    word(known["pair"])
    if word(known["tail"]) not in ("left", "right"):
        raise ValueError("a tail is left or right")
    for name in ("token_id", "prompt_id"):
        if known.get(name) is not None and type(known[name]) not in (int, str):
            raise ValueError(f"{name} is no id")
    return known


def tokens_row(row: Row) -> Row:
    """A row of ``tokens.jsonl``.

    Raises:
        ValueError, KeyError: it is none.
    """
    tokens = [token_row(token) for token in _list(row["tokens"])]
    return {
        "seq": sequence_of(row),
        "step": whole(row["step"]),
        "phase": word(row.get("phase", "train")),
        "tokens": tokens,
        AROUND: [around_row(one, len(tokens)) for one in _list(row.get(AROUND, []))],
        PLACES: {name: _means(one) for name, one in _table(row.get(PLACES, {})).items()},
    }


def _means(row: Any) -> Row:
    """Means by place, None: no token was there."""
    found = {name: _list(_table(row).get(name, [])) for name in ("position", "turn")}
    for values in found.values():
        if len(values) > MOST_PLACES:
            raise ValueError("too many places")
        for value in values:
            if value is not None:
                number(value)
    return found


def around_row(row: Any, tokens: int) -> Row:
    """What stood around a token of the row: what is known of it.

    Raises:
        ValueError, KeyError: it is nothing of the kind.
    """
    names = ("ids", "log_q", "log_p", *(("text",) if "text" in _table(row) else ()))
    found: Row = {name: _list(row[name]) for name in names}
    found |= {name: whole(row[name]) for name in ("token", "first")}
    size = len(found["ids"])
    if not 0 <= found["token"] < tokens or not 0 < size <= MOST_PLACES:
        raise ValueError("around no token, or too much")
    if any(len(found[name]) != size for name in names) or not -size < found["first"] <= 0:
        raise ValueError("not the same places")
    for name, check in (("ids", whole), ("log_q", number), ("log_p", number), ("text", word)):
        for value in found.get(name, ()):
            if value is not None:
                check(value)
    return found


def alert_of(row: Row) -> Alert:
    """A row of ``alerts.jsonl``.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    known = {name: value for name, value in row.items() if name in _ALERT_FIELDS}
    for name in ("step", "since"):
        if name in known:
            known[name] = whole(known[name])
    for name in ("kind", "severity", "message"):
        word(known[name])
    for name in ("believe", "action", "source", "means", "cause"):
        word(known.get(name, ""))
    if known.get("pair") is not None:
        word(known["pair"])
    if known.get("phase", "open") not in PHASES:
        raise ValueError("no phase that is known")
    if type(known.get("muted", False)) is not bool:
        raise ValueError("muted is true or false")
    known["kinds"] = tuple(word(kind) for kind in known.get("kinds", ()))
    known["values"] = numbers(known.get("values", {}))
    known["tokens"] = [token_row(token) for token in _list(known.get("tokens", []))]
    return alert_from_row(known)


def notice_of(row: Row) -> Notice:
    """A row of ``notes.jsonl``.

    Raises:
        ValueError, KeyError: it is none.
    """
    whole(row["step"])
    word(row["text"])
    word(row.get("kind", ""))
    when(row.get("time", 0.0))
    return notice_from_row(row)
