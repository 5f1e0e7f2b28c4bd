"""verl's trainers: nothing is called, installing klmonitor is enough.

verl 0.9 imports this through the entry point ``verl.plugins`` in every process, older ones where
``VERL_USE_EXTERNAL_MODULES=klmonitor_verl`` is set. It replaces functions of verl when verl imports
them; nothing else is imported before.
"""

from __future__ import annotations

import os

from klmonitor.hooks.process import unattachable

__all__ = ["attach"]


attach = unattachable(
    "verl",
    "it loads klmonitor by itself from 0.9 on, before with "
    "VERL_USE_EXTERNAL_MODULES=klmonitor_verl; options go on its command line, +klmonitor.x=y",
)

if os.environ.get("KLMONITOR_DISABLE", "0") in ("", "0"):
    from klmonitor_verl import plugin

    plugin.install()
