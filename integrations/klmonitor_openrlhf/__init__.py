"""OpenRLHF's trainers: ``python -m klmonitor_openrlhf`` in the place of its own command.

The command gives Ray a function that every process of the run calls when it starts (`setup`);
there functions of OpenRLHF are replaced when OpenRLHF imports them, and nothing is imported before.
"""

from __future__ import annotations

import os

from klmonitor.hooks.process import unattachable

__all__ = ["attach", "setup"]


attach = unattachable(
    "OpenRLHF",
    "start it with python -m klmonitor_openrlhf in the place of "
    "python -m openrlhf.cli.train_ppo_ray; options are --klmonitor.x y",
)


def setup() -> None:
    """Install the hooks in a process of Ray's; nothing that fails gets out, Ray would end it."""
    if os.environ.get("KLMONITOR_DISABLE", "0") not in ("", "0"):
        return
    try:
        from klmonitor_openrlhf import plugin

        plugin.install()
    except Exception:  # training goes on without us
        import logging

        logging.getLogger("klmonitor").warning("klmonitor: its hooks failed", exc_info=True)
