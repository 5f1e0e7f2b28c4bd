"""A snapshot of what users may rely on: names, signatures, metric names."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import klmonitor
from klmonitor.numbers.metrics import CORE, NAMES

SNAPSHOT = Path(__file__).parent / "public_api.json"


def current():
    def signature(thing):
        return str(inspect.signature(thing)).replace("klmonitor.", "")

    functions = {
        name: signature(getattr(klmonitor, name))
        for name in klmonitor.__all__
        if inspect.isfunction(getattr(klmonitor, name))
    }
    methods = {
        f"Monitor.{name}": signature(method)
        for name, method in inspect.getmembers(klmonitor.Monitor, inspect.isroutine)
        if (not name.startswith("_") or name == "__init__")
    }
    fields = {
        cls.__name__: sorted(cls.__dataclass_fields__)
        for cls in (
            klmonitor.Report,
            klmonitor.PairReport,
            klmonitor.Alert,
            klmonitor.ExtremeToken,
            klmonitor.Penalty,
        )
    }
    return {
        "names": sorted(klmonitor.__all__),
        "functions": functions | methods,
        "fields": fields,
        "metrics": list(NAMES),
        "core": sorted(CORE),
    }


def test_the_public_api_is_what_was_agreed():
    """A change here is a change for users: update the snapshot and the changelog together.

    `python tests/test_public_api.py` writes the snapshot anew.
    """
    assert current() == json.loads(SNAPSHOT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(current(), indent=1) + "\n", encoding="utf-8")
