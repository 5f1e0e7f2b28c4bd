"""What klmonitor would bind of the installed OpenRLHF, read from its modules; nothing is built."""

from __future__ import annotations

import warnings

from klmonitor.hooks.imports import imported
from klmonitor_openrlhf.plugin import HOOKS, PROCESS, TRAINER

COMMAND = "start it with python -m klmonitor_openrlhf"
PAIRS = "rollout_old, old_ref on the driver; old_policy, policy_ref on the workers"


def report() -> list[tuple[str, str, bool]]:
    """(trainer, what is bound or what is missing, whether it can be watched)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PROCESS.install()
        why = imported((TRAINER, *(hook.module for hook in HOOKS)))
    if why:
        return [("PPOTrainer", why, False)]
    absent = PROCESS.absent()
    lacks = "; lacks " + "; ".join(f"{k}: {v}" for k, v in absent.items()) if absent else ""
    return [("PPOTrainer", f"{PAIRS}{lacks}; {COMMAND}", not absent)]
