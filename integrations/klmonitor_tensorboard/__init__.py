"""TensorBoard's way to the "KL" tab, kept so small that it cannot fail.

TensorBoard imports every plugin's entry point without a guard: an error there ends the whole
command. So this package imports nothing of ours until `Loader.load`, where an error costs the tab
alone.
"""

from __future__ import annotations

import logging
from typing import Any

from tensorboard.plugins import base_plugin

logger = logging.getLogger("klmonitor")


class Loader(base_plugin.TBLoader):  # type: ignore[misc]  # TensorBoard has no types
    """Makes the tab, or does without."""

    def fix_flags(self, flags: Any) -> None:
        """Keep every step: TensorBoard keeps 10 or 100 of a plugin's otherwise, and spikes go."""
        if getattr(flags, "samples_per_plugin", None) is not None:
            flags.samples_per_plugin.setdefault("klmonitor", 0)

    def load(self, context: base_plugin.TBContext) -> base_plugin.TBPlugin | None:
        """The plugin, None where it cannot be made."""
        try:
            from klmonitor.dashboard.tab import Tab

            return Tab(context)
        except Exception:
            logger.warning("klmonitor: TensorBoard comes without the KL tab", exc_info=True)
            return None
