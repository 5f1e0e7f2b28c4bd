"""The layouts that are known: one module a trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from klmonitor_dumps.layout import POLICIES, Layout, Row
from klmonitor_dumps.layouts.nemo_rl import NEMO_RL
from klmonitor_dumps.layouts.plain import PLAIN
from klmonitor_dumps.layouts.prime_rl import PRIME_RL
from klmonitor_dumps.layouts.skyrl import SKYRL
from klmonitor_dumps.layouts.slime import SLIME

LAYOUTS: tuple[Layout, ...] = (NEMO_RL, PRIME_RL, SLIME, SKYRL, PLAIN)
"""In the order in which a record is compared with them; the last takes what is left."""


def layout_of(record: Row, name: str | None, named: Mapping[str, str]) -> Layout:
    """The layout of a dump from its first record.

    Args:
        record: what was read first.
        name: the layout that the user chose.
        named: role -> column that the user named.

    Raises:
        ValueError: it is not known, or makes no pair of policies; the message has the columns.
    """
    if name is not None and name not in {layout.name for layout in LAYOUTS}:
        known = ", ".join(layout.name for layout in LAYOUTS)
        raise ValueError(f"unknown layout {name!r}: choose from {known}")
    found = next(
        (one for one in LAYOUTS if one.name == name or (not name and one.knows(record))), PLAIN
    )
    columns = {**found.columns, **{role: (column,) for role, column in named.items()}}
    chosen = replace(found, columns=columns, named=frozenset(named))
    row = next(iter(chosen.rows(record)), None)
    if row is None:
        raise ValueError(f"the first record has no row for {chosen.title}: give --layout")
    missing = [f"{named[role]!r} for {role}" for role in named if named[role] not in row]
    there = ", ".join(map(repr, sorted(row)))
    if missing:
        raise ValueError(f"there is no column {', '.join(missing)}, only {there}")
    policies = [role for role in POLICIES if any(n in row for n in columns.get(role, ()))]
    if len(policies) < 2:
        held = f"only {policies[0]}" if policies else "none"
        raise ValueError(
            f"a KL needs log-probs of two policies and {held} is known among {there}: name them "
            "with --policy, --old, --rollout, --ref COLUMN"
        )
    return chosen
