"""TRL's trainers: users import `attach` and `KLMonitorCallback` from `klmonitor`.

Nothing is imported before it is used, so that ``klmonitor --help`` needs neither torch nor TRL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from klmonitor.hooks.handle import Handle
    from klmonitor_trl.callback import KLMonitorCallback

__all__ = ["KLMonitorCallback", "attach"]


def attach(trainer: Any, **options: Any) -> Handle:
    """Watch a TRL trainer.

    Args:
        trainer: a `trl.GRPOTrainer` or another one that generates and scores in the same way.
        options: see `klmonitor.hooks.options.Options`.

    Returns:
        The handle.

    Raises:
        TypeError: the trainer has not the functions that hold log-probs.
        ValueError: it is watched already, or an option cannot work with it.
    """
    from klmonitor_trl.callback import KLMonitorCallback

    return KLMonitorCallback(**options).join(trainer)


def __getattr__(name: str) -> Any:
    if name != "KLMonitorCallback":
        raise AttributeError(f"module 'klmonitor_trl' has no attribute {name!r}")
    from klmonitor_trl.callback import KLMonitorCallback

    return KLMonitorCallback
