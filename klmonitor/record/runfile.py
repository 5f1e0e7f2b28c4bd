"""``run.json``: what was run, and every start of it with its versions and its rules."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from klmonitor.report import Row

PENALTY = "penalty"
"""Key of what a run was started with: pair -> its KL term in one line."""
NOTES_OF_PAIRS = "notes"
"""Key of what a run was started with: pair -> what to know before its numbers are read."""
FORMAT = 1
"""The version of the record's layout."""
PACKAGES = ("klmonitor", "torch", "numpy", "transformers", "trl", "verl", "openrlhf", "vllm")
"""Packages whose version a start notes, where they are installed."""


def note_start(
    path: Path, meta: Mapping[str, object], rules: Mapping[str, object] | None = None
) -> None:
    """Write the file in one move, with this start after the earlier ones.

    Args:
        path: the file.
        meta: what describes the run.
        rules: which rules are in force (see `klmonitor.rules.settings.settings_to_row`).

    Raises:
        OSError: it cannot be written.
    """
    start: Row = {"time": time.time(), "versions": versions()}
    if rules is not None:
        start["rules"] = dict(rules)
    starts = [*read_run_file(path).get("starts", ()), start]
    body = {"format": FORMAT, "meta": dict(meta), "starts": starts}
    fresh = path.with_suffix(".json.new")
    with fresh.open("w", encoding="utf-8") as file:
        json.dump(body, file, indent=1, default=str)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def read_run_file(path: Path) -> Row:
    """The file's object; empty where there is none or it cannot be understood."""
    try:
        body = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    if not isinstance(body, dict):
        return {}
    starts = body.get("starts")
    body["starts"] = (
        [one for one in starts if isinstance(one, dict)] if isinstance(starts, list) else []
    )
    body["meta"] = body["meta"] if isinstance(body.get("meta"), dict) else {}
    return body


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
