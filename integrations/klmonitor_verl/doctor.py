"""What klmonitor would bind of the installed verl, read from its modules; nothing is built."""

from __future__ import annotations

import logging
import re
import warnings
from importlib import import_module
from importlib.util import find_spec

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
        found = [(name, *_bound(module)) for name, module in TRAINERS.items() if _exists(module)]
    how = "loads klmonitor by itself"
    if not loads_plugins(str(getattr(verl, "__version__", ""))):
        how = "set VERL_USE_EXTERNAL_MODULES=klmonitor_verl in every process"
    return [(name, f"{text}; {how}", good) for name, text, good in found]


def loads_plugins(version: str) -> bool:
    """Whether a verl of this version loads entry points; one that has no number is taken to."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    return not numbers or numbers >= PLUGIN_FROM


def _exists(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _bound(trainer: str) -> tuple[str, bool]:
    """What a trainer's process binds."""
    logging.disable(logging.WARNING)  # verl's imports warn of what is no fault of ours
    try:
        for module in dict.fromkeys((trainer, *(hook.module for hook in HOOKS))):
            if module not in TRAINERS.values() and _exists(module):
                import_module(module)
        import_module(trainer)
    except Exception as error:  # noqa: BLE001  # a package that it needs is missing
        return f"cannot be imported: {type(error).__name__}: {error}".splitlines()[0], False
    finally:
        logging.disable(logging.NOTSET)
    absent = PROCESS.absent()
    pairs = "rollout_old, old_ref on the driver; old_policy, policy_ref on the workers"
    if not absent:
        return pairs, True
    return f"{pairs}; lacks " + "; ".join(f"{k}: {v}" for k, v in absent.items()), False
