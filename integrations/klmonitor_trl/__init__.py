"""TRL's trainers: users import `attach` and `KLMonitorCallback` from `klmonitor`."""

from __future__ import annotations

from typing import Any

from klmonitor.attachment import Handle
from klmonitor_trl.callback import KLMonitorCallback

__all__ = ["KLMonitorCallback", "attach"]


def attach(trainer: Any, **options: Any) -> Handle:
    """Watch a TRL trainer.

    Args:
        trainer: a `trl.GRPOTrainer` or another one that generates and scores in the same way.
        options: see `klmonitor.attachment.Options`.

    Returns:
        The handle.

    Raises:
        TypeError: the trainer has not the functions that hold log-probs.
        ValueError: it is watched already, or an option cannot work with it.
    """
    callback = KLMonitorCallback(**options)
    callback.bind(trainer)
    trainer.add_callback(callback)
    assert callback.handle is not None
    return callback.handle
