"""What klmonitor would bind of the installed TRL, read from its classes; nothing is built."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from klmonitor_trl.kinds import MONOLITH, PAIRWISE
from klmonitor_trl.monolith import MonolithCapture
from klmonitor_trl.names import GENERATE, LOG_PROBS
from klmonitor_trl.packed import KEYS, PackedCapture
from klmonitor_trl.pairwise import COMPUTE, FORWARD

TRAINERS = {
    "GRPOTrainer": "",
    "RLOOTrainer": "",
    "GMPOTrainer": "gmpo",
    "AsyncGRPOTrainer": "async_grpo",
    "OnlineDPOTrainer": "online_dpo",
    "NashMDTrainer": "nash_md",
    "XPOTrainer": "xpo",
    "PPOTrainer": "ppo",
}
"""Trainer -> its folder in ``trl.experimental``, where newer versions keep it."""


def report() -> list[tuple[str, str, bool]]:
    """(trainer, what is bound or what is missing, whether it can be watched), in `TRAINERS` order.

    Trainers that the installed TRL does not have are left out.
    """
    return [(name, *_bound(name, trainer)) for name, trainer in _classes()]


def _classes() -> Iterator[tuple[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, folder in TRAINERS.items():
            places = [f"trl.experimental.{folder}", "trl"] if folder else ["trl"]
            for place in places:
                found = None
                # TRL's lazy modules turn whatever fails in them into one of these.
                with suppress(ImportError, AttributeError, RuntimeError):
                    found = getattr(importlib.import_module(place), name)
                if found is not None:
                    yield name, found
                    break


def _bound(name: str, trainer: Any) -> tuple[str, bool]:
    if name in MONOLITH and MonolithCapture.fits_class(trainer):
        return "pair old_ref; locals of train()", True
    if name == "AsyncGRPOTrainer":
        if not PackedCapture.fits_class(trainer):
            return f"not supported: packs its batches without {' and '.join(KEYS)}", False
        return "pair rollout_policy; log_probs of the model's outputs", True
    if name in PAIRWISE:
        function = next((one for one in (COMPUTE, FORWARD) if hasattr(trainer, one)), None)
        if function is None:
            return f"not supported: it has neither {FORWARD} nor {COMPUTE}", False
        return f"pair policy_ref; {function}", True
    function = next((one for one in LOG_PROBS if hasattr(trainer, one)), None)
    generates = hasattr(trainer, GENERATE)
    if name == "RLOOTrainer":
        if function is None or not generates:
            return f"not supported: it has no {GENERATE if function else LOG_PROBS[0]}", False
        return f"pairs old_ref, old_policy; {function}, {GENERATE}", True
    what = function or f"the model's outputs (no {LOG_PROBS[0]})"
    also = GENERATE if generates else f"no {GENERATE}"
    return f"pairs policy_ref, old_policy, rollout_old; {what}, {also}", True
