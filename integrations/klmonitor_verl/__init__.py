"""verl's trainers: nothing is called, installing klmonitor is enough.

verl 0.9 imports this through the entry point ``verl.plugins`` in every process, older ones where
``VERL_USE_EXTERNAL_MODULES=klmonitor_verl`` is set. It replaces functions of verl when verl imports
them; nothing else is imported before.
"""

from __future__ import annotations

import os
from typing import Any

__all__ = ["attach"]


def attach(trainer: Any, **options: Any) -> Any:
    """Refuse: verl's trainer runs within Ray, where nobody can call this.

    Raises:
        TypeError: always; the message says what to do instead.
    """
    raise TypeError(
        "verl is watched without attach(): it loads klmonitor by itself from 0.9 on, before with "
        "VERL_USE_EXTERNAL_MODULES=klmonitor_verl; options go on its command line, +klmonitor.x=y"
    )


if os.environ.get("KLMONITOR_DISABLE", "0") in ("", "0"):
    from klmonitor_verl import plugin

    plugin.install()
