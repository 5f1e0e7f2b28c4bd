"""Thresholds of every rule: a preset, and what the user changed.

    RuleSet("quiet")
    RuleSet({"preset": "quiet", "spike": {"z": 7}, "surge": False, "limit": {"policy_ref": 0.1}})
    RuleSet({"mute": [{"kind": "gap", "pair": "rollout_old", "until_step": 500}]})

or the same as a TOML table. A muted alert is judged and recorded, and nobody is told.

Every name is checked here, once, at setup.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from klmonitor.pairs import PAIR_INDEX
from klmonitor.record.mutes import Mute, mute_from_row, mute_to_row
from klmonitor.record.rows import finite_or_none
from klmonitor.report import Row
from klmonitor.rules.own import OwnRule
from klmonitor.rules.rule import Rule, Thresholds
from klmonitor.rules.table import PRESETS, RULES

Rules = str | Mapping[str, Any]
"""A preset's name, or a table: ``preset``, ``own``, ``mute``, and per kind a table of thresholds or
False."""
OTHER_KEYS = ("preset", "own", "mute")
MUTE_KEYS = ("kind", "pair", "until_step")


@dataclass(frozen=True)
class Settings:
    """What is judged, and how strictly.

    Attributes:
        preset: the preset it started from.
        thresholds: kind -> its thresholds, only of the rules that are on.
        own: the user's rules, name -> function.
        mute: what is recorded and told to nobody.
    """

    preset: str
    thresholds: Mapping[str, Thresholds]
    own: Mapping[str, OwnRule] = field(default_factory=dict)
    mute: tuple[Mute, ...] = ()


def parse_rules(rules: Rules) -> Settings:
    """Check a preset's name or a table of rules.

    Raises:
        ValueError: a name is unknown or a value is no number; the message names it and the remedy.
        TypeError: `rules` is neither a name nor a table.
    """
    if isinstance(rules, str):
        return Settings(rules, _preset(rules))
    if not isinstance(rules, Mapping):
        raise TypeError(
            f"rules must be the name of a preset ({', '.join(PRESETS)}) or a table, "
            f"not {type(rules).__name__}"
        )
    name = rules.get("preset", "default")
    thresholds = _preset(name)
    by_kind = {rule.kind: rule for rule in RULES}
    for kind, value in rules.items():
        if kind in OTHER_KEYS:
            continue
        if kind not in by_kind:
            raise ValueError(unknown("rule", kind, [*by_kind, *OTHER_KEYS]))
        changed = _changed(by_kind[kind], thresholds.get(kind, {}), value)
        if changed is None:
            thresholds.pop(kind, None)
        else:
            thresholds[kind] = changed
    own = _own(rules.get("own", ()))
    return Settings(name, thresholds, own, parse_mutes(rules.get("mute", ()), [*by_kind, *own]))


def parse_mutes(rows: Any, kinds: Iterable[str]) -> tuple[Mute, ...]:
    """Check a list of mutes.

    Args:
        rows: a table each: ``kind``, and if wanted ``pair`` and ``until_step``.
        kinds: those that there may be.

    Raises:
        ValueError: something is unknown; the message names it and the remedy.
    """
    if isinstance(rows, Mapping | str) or not isinstance(rows, Iterable):
        raise ValueError(f"mute is {rows!r}: give a list of tables of {', '.join(MUTE_KEYS)}")
    return tuple(_mute(row, kinds) for row in rows)


def _mute(row: Any, kinds: Iterable[str]) -> Mute:
    if not isinstance(row, Mapping) or "kind" not in row:
        raise ValueError(f"mute has {row!r}: give a table with kind, and pair or until_step")
    for key in row:
        if key not in MUTE_KEYS:
            raise ValueError(unknown("key of mute", key, MUTE_KEYS))
    if row["kind"] not in kinds:
        raise ValueError(unknown("kind in mute", row["kind"], kinds))
    if row.get("pair") not in (None, *PAIR_INDEX):
        raise ValueError(unknown("pair in mute", row["pair"], PAIR_INDEX))
    until = row.get("until_step")
    if isinstance(until, bool) or not isinstance(until, int | None):
        raise ValueError(f"until_step in mute is {until!r}: give the last muted step")
    return mute_from_row(dict(row))


def settings_to_row(settings: Settings) -> Row:
    """What ``run.json`` holds of settings: the preset, thresholds by kind, names of own rules."""
    thresholds = {
        kind: {name: finite_or_none(value) for name, value in limits.items()}
        for kind, limits in settings.thresholds.items()
    }
    return {
        "preset": settings.preset,
        "thresholds": thresholds,
        "own": list(settings.own),
        "mute": [mute_to_row(mute) for mute in settings.mute],
    }


def describe_rules(row: Row) -> list[str]:
    """What such an object says, in words: the preset, and what differs from this version's."""
    thresholds, preset = row["thresholds"], row["preset"]
    on = _preset(preset) if preset in PRESETS else {}
    usual = {rule.kind: _defaults(rule) for rule in RULES} | on
    changed = [
        f"{kind} {name} = {value:g}"
        for kind, limits in thresholds.items()
        for name, value in limits.items()
        if value != finite_or_none(usual.get(kind, {}).get(name, math.nan))
    ]
    off = [f"{kind} off" for kind in on if kind not in thresholds]
    muted = [describe_mute(mute) for mute in row.get("mute", ())]
    return [preset, *changed, *off, *row["own"], *muted]


def describe_mute(row: Row) -> str:
    """What a mute says, in words."""
    of = f" of {row['pair']}" if row.get("pair") else ""
    until = "" if row.get("until_step") is None else f" up to step {row['until_step']}"
    return f"{row['kind']}{of} muted{until}"


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """An error message for a name that does not exist: the nearest, then all."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {what} {name!r}: {hint}Choose from {', '.join(known)}"


def _preset(name: object) -> dict[str, Thresholds]:
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(unknown("preset", name, PRESETS))
    changes = PRESETS[name]
    return {
        rule.kind: {**_defaults(rule), **changes.get(rule.kind, {})} for rule in RULES if rule.on
    }


def _defaults(rule: Rule) -> Thresholds:
    return {**rule.thresholds, "cooldown": rule.cooldown}


def _changed(rule: Rule, current: Thresholds, value: Any) -> Thresholds | None:
    if value is False:
        return None
    if value is True:
        return current or _defaults(rule)
    if not isinstance(value, Mapping):
        raise ValueError(
            f"rule {rule.kind!r} is {value!r}: give true, false or a table of "
            f"{', '.join(PAIR_INDEX if rule.per_pair else rule.thresholds)}"
        )
    known = _defaults(rule)
    names = [*PAIR_INDEX, *known] if rule.per_pair else list(known)
    for name, number in value.items():
        if name not in names:
            raise ValueError(unknown(f"threshold of rule {rule.kind!r}", name, names))
        if not _is_threshold(number):
            raise ValueError(
                f"threshold {rule.kind}.{name} is {_shown(number)}: give a number, 0 or more"
            )
    return {**(current or known), **{key: float(n) for key, n in value.items()}}


def _shown(value: Any) -> str:
    """A value in a message, not longer than a line."""
    try:
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:57]}..."
    except ValueError:  # an integer of thousands of digits
        return "an integer too long to show"


def _is_threshold(number: Any) -> bool:
    """Whether it is a number, not negative; infinity is one."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        return False
    try:
        return float(number) >= 0
    except OverflowError:
        return False


def _own(functions: Any) -> dict[str, OwnRule]:
    if callable(functions) or isinstance(functions, str):
        functions = [functions]
    named: dict[str, OwnRule] = {}
    for function in functions:
        if not callable(function):
            raise ValueError(
                f"own rule {function!r} cannot be called: give a function of a Report that "
                "returns a message, an Alert or None"
            )
        name = getattr(function, "__name__", type(function).__name__)
        if name in named or name in {rule.kind for rule in RULES}:
            raise ValueError(f"two rules are called {name!r}: rename the function")
        named[name] = function
    return named
