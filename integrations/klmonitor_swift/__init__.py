"""ms-swift: a callback that its command line names.

    swift rlhf --rlhf_type grpo ... --external_plugins plugin.py --callbacks klmonitor

with the line ``import klmonitor_swift`` in ``plugin.py``. Options come from the environment or from
a file (`klmonitor.hooks.configuration`).
"""

from __future__ import annotations

from typing import Any

from klmonitor.boundary import say
from klmonitor.hooks.doors import door_options, entered
from klmonitor.hooks.handle import Handle
from klmonitor_swift.watch import SwiftWatch
from klmonitor_trl.callback import KLMonitorCallback

__all__ = ["attach"]

NAME = "klmonitor"
"""What ``--callbacks`` calls us."""


class SwiftCallback(KLMonitorCallback):
    """Watches the trainer that ms-swift has built, from the beginning of its training."""

    watch_class = SwiftWatch


class NamedCallback(SwiftCallback):
    """The same, where the command line has named it: a trainer that cannot be watched trains on."""

    def bind(self, trainer: Any) -> None:
        """Watch a trainer, or say why it cannot be.

        Raises:
            ValueError: an option cannot work with it.
        """
        entered(f"ms-swift's {type(trainer).__name__}", lambda: SwiftCallback.bind(self, trainer))


def attach(trainer: Any, **options: Any) -> Handle:
    """Watch a GRPO trainer of ms-swift; options as `klmonitor.hooks.options.Options`.

    Raises:
        TypeError: the trainer has not the functions that hold log-probs.
        ValueError: it is watched already, or an option cannot work with it.
    """
    return SwiftCallback(**options).join(trainer)


def named(args: Any, trainer: Any) -> NamedCallback:
    """The callback of a run; ms-swift calls this while it builds the trainer.

    Raises:
        ValueError: an option is unknown, or has a value that cannot work.
    """
    return NamedCallback(**vars(door_options()))


def register() -> None:
    """Put us where ``--callbacks`` looks."""
    try:
        from swift.callbacks import callbacks_map
    except ImportError:
        say("this ms-swift has no swift.callbacks.callbacks_map: it trains on without klmonitor")
        return
    callbacks_map[NAME] = named


register()
