"""Columns that bear our names, or those that the user gives."""

from __future__ import annotations

from klmonitor_dumps.layout import ROLES, Layout

PLAIN = Layout(
    name="columns",
    title="columns by name",
    columns={role: (role,) for role in ROLES},
)
