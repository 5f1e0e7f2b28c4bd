"""Options from everywhere: from code or a command line, the environment, a file.

In falling precedence: what is given; ``KLMONITOR_<OPTION>`` of the environment; the table
``[klmonitor]`` of a TOML file, which ``KLMONITOR_CONFIG`` names where nobody else does.
"""

from __future__ import annotations

import difflib
import inspect
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

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
LISTS = ("groups", "sinks", "pairs")
"""Options that are lists: ``math,code`` is one."""
NEAR = 0.8
"""How alike a variable and an option are of which the one is taken for a slip of the other."""
OF_CODE = ("process_group", "extra_values", "annotate", "words")
"""Settings of a `Monitor` that no file can hold."""
OF_ATTACH = {
    "on_alert": "act on report.alerts in the loop",
    "group_column": "pass observe(group=...)",
    "reference": "pass observe(ref=...)",
    "reference_every": "pass observe(ref=...) as often as it is to be compared",
    "recompute": "pass observe(policy=...)",
    "audit_every": "call klmonitor.exact_kl where the loop holds logits",
    "audit_positions": "call klmonitor.exact_kl where the loop holds logits",
}
"""Options of `klmonitor.attach` that a `Monitor` has not, and what a loop does instead."""


def layered(
    names: Iterable[str],
    given: Mapping[str, Any],
    who: str,
    environ: Mapping[str, str] | None = None,
    path: str | os.PathLike[str] | None = None,
    refuse: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Options from everywhere as they were written, see this module.

    Args:
        names: of all options.
        given: what goes before everything else, by option.
        who: has given it, for messages.
        environ: variables; None: the process's own.
        path: of the file; None: what ``KLMONITOR_CONFIG`` says.
        refuse: options of others, and what to do instead.

    Raises:
        ValueError: an option is unknown (the message has the nearest), or the file cannot be used;
            the message says where it came from.
    """
    names, refuse = tuple(names), refuse or {}
    environ = os.environ if environ is None else environ

    def check(name: str, where: str) -> None:
        if name in refuse:
            raise ValueError(f"{where}: {name} is an option of attach() alone: {refuse[name]}")
        if name not in names:
            raise ValueError(f"{where}: {unknown('option', name, names)}")

    found = {**_of_file(environ, path, check), **_of_environment(names, refuse, environ, check)}
    for name, value in given.items():
        check(name, who)
        found[name] = value
    return found


def monitor_settings(
    monitor: Callable[..., Any],
    path: str | os.PathLike[str] | None,
    given: Mapping[str, Any],
    environ: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What `Monitor.from_config` gives the constructor.

    Args:
        monitor: the class, whose arguments are the options.
        path: of the file; None: what ``KLMONITOR_CONFIG`` says.
        given: by code.
        environ: variables; None: the process's own.

    Raises:
        ValueError: an option is unknown or cannot come from where it was found.
    """
    code = {name: given[name] for name in OF_CODE if name in given}
    names = [name for name in inspect.signature(monitor).parameters if name not in OF_CODE]
    rest = {name: value for name, value in given.items() if name not in OF_CODE}
    found = with_penalty(layered(names, rest, "Monitor.from_config", environ, path, OF_ATTACH))
    if found.get("run_dir") is True:
        raise ValueError("run_dir is True: give a path, as a loop has no output directory")
    if found.get("run_dir") is False:
        found["run_dir"] = None
    return {**found, **code}


def with_penalty(found: dict[str, Any]) -> dict[str, Any]:
    """Options whose penalty is no table but what it says.

    Raises:
        ValueError: it cannot be what it is.
    """
    given = found.get("penalty")
    return {**found, "penalty": _penalty(given)} if isinstance(given, Mapping) else found


def _penalty(table: Mapping[str, Any]) -> Any:
    """Terms of an objective from a table of one's fields, or one such table a pair.

    Raises:
        ValueError: a field is unknown, or cannot be what it is.
    """
    try:
        if all(isinstance(value, Mapping) for value in table.values()):
            return {pair: Penalty(**fields) for pair, fields in table.items()}
        if all(isinstance(value, Penalty) for value in table.values()):
            return table
        return Penalty(**table)
    except TypeError as error:
        raise ValueError(f"penalty: {error}; its fields are klmonitor.Penalty's") from None


def _of_file(
    environ: Mapping[str, str],
    path: str | os.PathLike[str] | None,
    check: Callable[[str, str], None],
) -> dict[str, Any]:
    named = environ.get(FILE) if path is None else os.fspath(path)
    if not named:
        return {}
    where = f"{named} ({FILE})" if path is None else named
    try:
        table = load_toml(Path(named).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {where}: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    options = table.get(TABLE)
    if not isinstance(options, Mapping):
        raise ValueError(f"{where} has no table [{TABLE}]: put the options into one")
    for name in options:
        check(name, where)
    return dict(options)


def _of_environment(
    names: tuple[str, ...],
    refuse: Mapping[str, str],
    environ: Mapping[str, str],
    check: Callable[[str, str], None],
) -> dict[str, Any]:
    found = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable in OWN:
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name in names:
            found[name] = value_of(name, text)
        elif name in refuse or difflib.get_close_matches(name, names, n=1, cutoff=NEAR):
            check(name, variable)
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
