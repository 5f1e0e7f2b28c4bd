"""`klmonitor.actions.Actions`: its home is `klmonitor.hooks.actions`."""

from klmonitor.hooks.actions import ACTIONS, CHECKPOINT, STOP, Actions

__all__ = ["ACTIONS", "CHECKPOINT", "STOP", "Actions"]
