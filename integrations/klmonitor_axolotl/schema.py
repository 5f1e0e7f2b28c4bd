"""What axolotl lets through of the YAML."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class KLMonitorArgs(BaseModel):
    """The options of `klmonitor.attach`, checked by klmonitor itself.

    Attributes:
        klmonitor: option -> value.
    """

    klmonitor: dict[str, Any] | None = None
