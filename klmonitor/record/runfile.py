"""``run.json``: what was run, and every start of it with its versions and its rules."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from klmonitor.record.fresh import replaced
from klmonitor.report import Row

PENALTY = "penalty"
"""Key of what a run was started with: pair -> its KL term in one line."""
TERMS = "penalty_terms"
"""And pair -> the fields of its `Penalty`."""
NOTES_OF_PAIRS = "notes"
"""Key of what a run was started with: pair -> what to know before its numbers are read."""
FORMAT = 2
"""The version of the record's layout (docs/record.md)."""
PACKAGES = ("klmonitor", "torch", "numpy", "transformers", "trl", "verl", "openrlhf", "vllm")
"""Packages whose version a start notes, where they are installed."""
MOST_BYTES = 16 * 2**20
"""A larger file is none of ours."""


@dataclass(frozen=True)
class RunFile:
    """What ``run.json`` holds.

    Attributes:
        id: names the run, also in the state that a resumed one is continued from.
        segment: the number of the start, 1 for the first one in the directory.
        meta: what describes the run.
        starts: of this run, the first and those that continued it.
        format: the version of the layout.
    """

    id: str = ""
    segment: int = 0
    meta: Mapping[str, object] = field(default_factory=dict)
    starts: tuple[Row, ...] = ()
    format: int = FORMAT


def this_start(rules: Mapping[str, object] | None = None, after: int | None = None) -> Row:
    """A start as ``run.json`` tells it.

    Args:
        rules: which rules are in force (see `klmonitor.rules.settings.settings_to_row`).
        after: the step after which it continues an earlier one.
    """
    start: Row = {"time": time.time(), "versions": versions()}
    if rules is not None:
        start["rules"] = dict(rules)
    if after is not None:
        start["after"] = after
    return start


def write_run_file(path: Path, run: RunFile) -> None:
    """Write the file in one move.

    Raises:
        OSError: it cannot be written.
    """
    body = {
        "format": FORMAT,
        "id": run.id,
        "segment": run.segment,
        "meta": dict(run.meta),
        "starts": list(run.starts),
    }
    with replaced(path) as file:
        file.write(json.dumps(body, indent=1, default=str).encode())


def read_run_file(path: Path) -> RunFile:
    """The file's object; what is not there, or cannot be understood, is empty."""
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            return RunFile()
        body = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return RunFile()
    if not isinstance(body, dict):
        return RunFile()
    starts, meta = body.get("starts"), body.get("meta")
    ident, segment = body.get("id"), body.get("segment")
    version = body.get("format")
    return RunFile(
        id=ident if isinstance(ident, str) else "",
        segment=segment if type(segment) is int and segment > 0 else 0,
        meta=plain(meta) if isinstance(meta, dict) else {},
        starts=tuple(_start(one) for one in starts if isinstance(one, dict))
        if isinstance(starts, list)
        else (),
        format=version if type(version) is int else 1,
    )


def _start(body: Row) -> Row:
    """A start with the parts that others rely on, as they must be."""
    found: Row = plain(body)
    if not isinstance(found.get("versions"), dict):
        found["versions"] = {}
    if "rules" in found and not _are_rules(found["rules"]):
        del found["rules"]
    return found


def _are_rules(body: Any) -> bool:
    """Whether that is what `klmonitor.rules.settings.settings_to_row` gives."""
    if not isinstance(body, dict) or not isinstance(body.get("preset"), str):
        return False
    thresholds, own, mutes = body.get("thresholds"), body.get("own"), body.get("mute", [])
    if not isinstance(thresholds, dict):
        return False
    tables = list(thresholds.values())
    return (
        all(isinstance(table, dict) for table in tables)
        and all(type(value) in (int, float) for table in tables for value in table.values())
        and isinstance(own, list)
        and all(isinstance(name, str) for name in own)
        and isinstance(mutes, list)
        and all(isinstance(one, dict) and isinstance(one.get("kind"), str) for one in mutes)
    )


def plain(value: Any, depth: int = 6) -> Any:
    """What somebody else has written, as JSON that is not too deep; what is deeper becomes text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if not depth:
        return "..."
    if isinstance(value, Mapping):
        return {str(key): plain(item, depth - 1) for key, item in value.items()}
    return [plain(item, depth - 1) for item in value]


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that matter, without importing any."""
    installed = {name: _version(name) for name in PACKAGES}
    python = {"python": platform.python_version()}
    return python | {name: version for name, version in installed.items() if version}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
