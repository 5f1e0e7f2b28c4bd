"""What the page asks its host, and the answer: ``runs``, ``data`` and ``step``.

runs                          -> {"runs": [name, ...]}
data?run=0&rows=80&alerts=4&generation=0     -> what came since (see `RunColumns.data`)
step?run=0&step=60            -> {"explain": {pair: text}, "tokens": [...]}
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from klmonitor.dashboard.source import Source
from klmonitor.report import Row


def overview(source: Source) -> Row:
    """Names of the runs."""
    return {"runs": [run.name for run in source.runs()]}


def answer(source: Source, question: str, query: Mapping[str, str]) -> bytes:
    """The answer as JSON.

    Raises:
        LookupError: there is no such question or run.
        ValueError: a number is none.
    """
    if question == "runs":
        return encode(overview(source))
    number = int(query.get("run", "0"))
    runs = source.runs()
    if not 0 <= number < len(runs):
        raise LookupError(f"no run {number}: there are {len(runs)}")
    run = runs[number]
    if question == "data":
        wanted = (int(query.get(key, "0")) for key in ("rows", "alerts", "generation"))
        return encode(run.data(*(max(value, 0) for value in wanted)))
    if question == "step":
        return encode(run.details(int(query.get("step", "0"))))
    raise LookupError(f"no answer to {question!r}")


def encode(row: Row) -> bytes:
    """JSON as bytes; what JSON lacks becomes text."""
    return json.dumps(row, separators=(",", ":"), default=str).encode()
