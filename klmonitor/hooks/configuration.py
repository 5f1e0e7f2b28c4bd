"""Options where nobody calls `attach`: from a command line, the environment, a file.

In falling precedence: what the trainer's own command line gave; ``KLMONITOR_<OPTION>`` of the
environment; the table ``[klmonitor]`` of the TOML file that ``KLMONITOR_CONFIG`` names. The keys
are the options of `klmonitor.hooks.options.Options`.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from klmonitor.hooks.options import Options
from klmonitor.penalty import Penalty
from klmonitor.rules.file import load_toml
from klmonitor.rules.settings import unknown

PREFIX = "KLMONITOR_"
FILE = "KLMONITOR_CONFIG"
TABLE = "klmonitor"
GIVEN = "KLMONITOR_GIVEN"
"""What a launcher has read, as JSON, for a process of another machine."""
OWN = ("KLMONITOR_CONFIG", "KLMONITOR_DISABLE", "KLMONITOR_CACHE_DIR", GIVEN)
"""Variables that are no options."""
LISTS = ("groups", "sinks")
"""Options that are lists: ``math,code`` is one."""
NEAR = 0.8
"""How alike a variable and an option are of which the one is taken for a slip of the other."""


def load_options(
    given: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> Options:
    """Options from everywhere, see this module.

    Args:
        given: what the trainer's command line says, by option.
        environ: variables; None: the process's own.

    Raises:
        ValueError: an option is unknown (the message has the nearest), or its value or the file
            cannot be used; the message says where it came from.
    """
    found = gathered(given, environ)
    if isinstance(found.get("penalty"), Mapping):
        found["penalty"] = _penalty(found["penalty"])
    return Options.parse(found)


def gathered(
    given: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The options that were given anywhere, as they were written; see `load_options`."""
    environ = os.environ if environ is None else environ
    found = {**_of_file(environ), **_of_environment(environ)}
    for name, value in (given or {}).items():
        _check(name, "the command line")
        found[name] = value
    return found


def option_names() -> list[str]:
    """Names of all options."""
    return [field.name for field in dataclasses.fields(Options)]


def _penalty(table: Mapping[str, Any]) -> Any:
    """Terms of an objective from a table of one's fields, or one such table a pair.

    Raises:
        ValueError: a field is unknown, or cannot be what it is.
    """
    try:
        if all(isinstance(value, Mapping) for value in table.values()):
            return {pair: Penalty(**fields) for pair, fields in table.items()}
        return Penalty(**table)
    except TypeError as error:
        raise ValueError(f"penalty: {error}; its fields are klmonitor.Penalty's") from None


def _check(name: str, where: str) -> None:
    if name not in option_names():
        raise ValueError(f"{where}: {unknown('option', name, option_names())}")


def _of_file(environ: Mapping[str, str]) -> dict[str, Any]:
    path = environ.get(FILE)
    if not path:
        return {}
    where = f"{path} ({FILE})"
    try:
        table = load_toml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {where}: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    options = table.get(TABLE)
    if not isinstance(options, Mapping):
        raise ValueError(f"{where} has no table [{TABLE}]: put the options into one")
    for name in options:
        _check(name, where)
    return dict(options)


def _of_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    found = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable in OWN:
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name in option_names():
            found[name] = value_of(name, text)
        elif difflib.get_close_matches(name, option_names(), n=1, cutoff=NEAR):
            _check(name, variable)
        # Any other is the user's own: notify="env:KLMONITOR_HOOK" reads one, for instance.
    return found


def value_of(name: str, text: str) -> Any:
    """The text of an option as JSON where it is some, else as it stands."""
    plain = text.strip()
    if plain.lower() in ("true", "false", "none", "null"):
        return {"true": True, "false": False}.get(plain.lower())
    try:
        return json.loads(plain)
    except ValueError:
        if name in LISTS:
            return [one.strip() for one in plain.split(",") if one.strip()]
        return plain
