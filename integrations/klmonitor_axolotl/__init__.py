"""axolotl: a plugin that its YAML names.

    plugins:
      - klmonitor_axolotl.KLMonitorPlugin
    klmonitor:                # optional: the options of `klmonitor.attach`
      on_alert: checkpoint

axolotl's GRPO trainers are TRL's with mixins, so it is TRL's integration that watches them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from axolotl.integrations.base import BasePlugin

from klmonitor.attachment import attach
from klmonitor.boundary import say
from klmonitor.hooks.doors import door_options, entered
from klmonitor.hooks.handle import Handle

TABLE = "klmonitor"
"""The key of the YAML that holds our options."""
HOOK = "post_trainer_create"
"""What axolotl calls with the trainer once it is built."""


class KLMonitorPlugin(BasePlugin):  # type: ignore[misc]  # axolotl: untyped
    """Watches the trainer that axolotl has built.

    Attributes:
        handle: of the trainer that was built last; None: it is not watched.
    """

    def __init__(self) -> None:
        """Nothing is watched yet."""
        super().__init__()
        self.handle: Handle | None = None

    def register(self, cfg: Any) -> None:
        """Refuse options that cannot work, before a model is loaded.

        Raises:
            ValueError: an option is unknown, or has a value that cannot work.
        """
        door_options(_table(cfg))
        if not hasattr(BasePlugin, HOOK):
            say("this axolotl calls no %s, so it trains on without klmonitor", HOOK)

    def get_input_args(self) -> str:
        """The schema of our table: axolotl drops what none names."""
        return "klmonitor_axolotl.schema.KLMonitorArgs"

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Watch the trainer, or say why it cannot be.

        Raises:
            ValueError: an option cannot work with this trainer.
        """
        options = vars(door_options(_table(cfg)))
        name = f"axolotl's {type(trainer).__name__}"
        self.handle = entered(name, lambda: attach(trainer, **options))


def _table(cfg: Any) -> Mapping[str, Any]:
    """Our options as plain tables: those of axolotl answer None to any name."""
    found = cfg.get(TABLE) or {}
    return found.to_dict() if hasattr(found, "to_dict") else found
