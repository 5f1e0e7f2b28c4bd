"""Rules in a file: the table of `klmonitor.rules.settings` as TOML or JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from klmonitor.rules import Rules

LARGEST = 2**20
"""Bytes of a file of rules."""


def load_rules(rules: Rules | os.PathLike[str]) -> Rules:
    """Rules from a file where one is named, else as given.

    Args:
        rules: a preset's name, a table, or the path of a ``.toml`` or ``.json`` file.

    Raises:
        ValueError: the file cannot be read or understood; the message has the remedy.
        TypeError: `rules` is none of these.
    """
    if isinstance(rules, Mapping):
        return rules
    if not isinstance(rules, (str, os.PathLike)):
        raise TypeError(
            f"rules={rules!r}: give a preset's name, a table of changes or a .toml or .json file"
        )
    path = Path(rules)
    if isinstance(rules, str) and path.suffix.lower() not in (".toml", ".json"):
        return rules
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{path} has more than {LARGEST:,} bytes: rules are a small table")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot read the rules in {path}: {error.strerror or error}") from None
    try:
        return _parse(path, text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except RecursionError:
        raise ValueError(f"{path}: tables within tables without end; rules are two deep") from None


def _parse(path: Path, text: str) -> Mapping[str, Any]:
    table = json.loads(text) if path.suffix.lower() == ".json" else load_toml(text)
    if not isinstance(table, dict):
        raise ValueError("rules are a table")
    return table


def load_toml(text: str) -> Any:
    """What a TOML text says.

    Raises:
        ValueError: it is none, or this Python reads none.
    """
    for name in ("tomllib", "tomli"):  # the first is Python's from 3.11 on
        if find_spec(name) is not None:
            return import_module(name).loads(text)
    raise ValueError(
        "this Python reads no TOML: pip install tomli, or write JSON where that is taken"
    )


def rules_toml(table: Mapping[str, Any]) -> str:
    """A table of rules as TOML.

    Args:
        table: ``preset``, and per kind False or a table of numbers.
    """
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    for kind, thresholds in table.items():
        if isinstance(thresholds, Mapping):
            numbers = [f"{key} = {value!r}" for key, value in thresholds.items()]
            lines += ["", f"[{kind}]", *numbers]
    return "\n".join(lines).strip() + "\n"
