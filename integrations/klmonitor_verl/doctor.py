"""What klmonitor would bind of the installed verl, read from its modules; nothing is built."""

from __future__ import annotations

import re
import warnings
from importlib import import_module

from klmonitor.hooks.imports import exists, imported
from klmonitor_verl.plugin import HOOKS, PROCESS, V0, V1

TRAINERS = {"PPOTrainer (V1)": V1, "RayPPOTrainer (V0)": V0}
WORKERS = ("verl.trainer.ppo.core_algos", "verl.workers.engine_workers")
PLUGIN_FROM = (0, 9)
"""The first verl that loads entry points by itself."""


def report() -> list[tuple[str, str, bool]]:
    """(trainer, what is bound or what is missing, whether it can be watched)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verl = import_module("verl")
        PROCESS.install()
        found = [(name, *_bound(module)) for name, module in TRAINERS.items() if exists(module)]
    how = "loads klmonitor by itself"
    if not loads_plugins(str(getattr(verl, "__version__", ""))):
        how = "set VERL_USE_EXTERNAL_MODULES=klmonitor_verl in every process"
    return [(name, f"{text}; {how}", good) for name, text, good in found]


def loads_plugins(version: str) -> bool:
    """Whether a verl of this version loads entry points; one that has no number is taken to."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    return not numbers or numbers >= PLUGIN_FROM


def _bound(trainer: str) -> tuple[str, bool]:
    """What a trainer's process binds."""
    others = [hook.module for hook in HOOKS if hook.module not in TRAINERS.values()]
    why = imported((*others, trainer))
    if why:
        return why, False
    absent = PROCESS.absent()
    pairs = "rollout_old, old_ref on the driver; old_policy, policy_ref on the workers"
    if not absent:
        return pairs, True
    return f"{pairs}; lacks " + "; ".join(f"{k}: {v}" for k, v in absent.items()), False
