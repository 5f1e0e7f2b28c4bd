"""What comes from outside as JSON is looked at as a whole before any of it is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

DEPTH = 8
"""Tables within tables."""
LONGEST = 20_000
"""Entries of a list or a table."""


def check_plain(value: Any, where: str = "the state", depth: int = DEPTH) -> None:
    """Refuse what no state of ours holds: other types, depth without end, numbers beyond floats.

    Raises:
        ValueError: the message says where.
    """
    if value is None or isinstance(value, (bool, str, float)):
        return
    if isinstance(value, int):
        if abs(value) > 2**63:
            raise ValueError(f"{where} holds an integer beyond 64 bits")
        return
    if not isinstance(value, (dict, list, tuple)):
        raise ValueError(f"{where} holds a {type(value).__name__}")
    if len(value) > LONGEST or not depth:
        raise ValueError(f"{where} holds more than any state of ours")
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if not isinstance(key, (str, int)):
            raise ValueError(f"{where} holds a key {key!r}")
        check_plain(item, f"{where}[{key!r}]", depth - 1)


def numbers_of(values: Any, where: str, count: int | None = None) -> list[float]:
    """A list of numbers, nan among them.

    Args:
        values: what was stored.
        where: for the message.
        count: how many there must be; None: any.

    Raises:
        ValueError: it is no such list.
    """
    if not isinstance(values, (list, tuple)) or (count is not None and len(values) != count):
        raise ValueError(f"{where} is no list of {count or 'any number of'} numbers")
    if not all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in values):
        raise ValueError(f"{where} holds something that is no number")
    return [float(x) for x in values]


def count_of(value: Any, where: str) -> int:
    """A whole number, 0 or more.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{where} is {value!r}, no count")
    return value


def fields_like(default: DataclassInstance, state: Mapping[str, Any]) -> dict[str, Any]:
    """What is stored of a dataclass, each field of the kind that its default is.

    Args:
        default: an instance whose fields are bool, int (a count or a step), float or list of str.
        state: field -> value; those that are missing are the default's.

    Raises:
        ValueError: a field is unknown or of another kind.
    """
    found, owner = asdict(default), type(default).__name__
    for name, value in state.items():
        if name not in found:
            raise ValueError(f"a {owner} has no {name!r}")
        found[name] = _like(found[name], value, f"{name} of a {owner}")
    return found


def _like(default: Any, value: Any, where: str) -> Any:
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{where} is {value!r}, neither true nor false")
        return value
    if isinstance(default, int):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{where} is {value!r}, no whole number")
        return value
    if isinstance(default, float):
        return numbers_of([value], where, 1)[0]
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{where} is {value!r}, no list of names")
    return list(value)
