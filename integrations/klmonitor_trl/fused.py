"""Unsloth's GRPO, whose loss scores within itself: the trainer's log-prob function gives None.

Unsloth writes a module with TRL's trainer and its own loss in it. That loss hands all log-probs to
``UnslothEfficientGRPO.apply(new, old, ref, sampling, lm_head, ids, mask, advantages, ...)``, each
[B, T] and aligned there, which is found where the loss finds it: among its globals. Read in the
sources of Unsloth 2026.10.9; it needs an accelerator to be imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from klmonitor.hooks.listener import Listener
from klmonitor.hooks.wraps import Wrap

NAME = "UnslothEfficientGRPO"
LOSSES = ("compute_loss", "_compute_loss")
POLICIES = ("policy", "old", "ref", "rollout")
"""Of the first arguments of ``apply``, in their order."""
IDS, MASK, ADVANTAGES = 5, 6, 7
"""Places of the others."""


def fused_loss(trainer: Any) -> Any:
    """The class whose ``apply`` is given all log-probs; None: the loss has no such name."""
    for name in LOSSES:
        loss = inspect.unwrap(getattr(type(trainer), name, lambda: None))
        found = getattr(loss, "__globals__", {}).get(NAME)
        if callable(getattr(found, "apply", None)):
            return found
    return None


class FusedLoss(Listener[tuple[Any, ...]]):
    """Keeps the arguments that ``apply`` is given."""

    def __init__(self, owner: Any) -> None:
        """Put a wrap around ``owner.apply``."""
        super().__init__()
        self._off = Wrap(owner, "apply", self._hear).undo

    def _hear(self, original: Callable[..., Any], *args: Any) -> Any:
        result = original(*args)
        if self._listening:
            self.kept.append(args)
        return result

    def heard(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Policies and the layout of one micro-batch.

        Raises:
            LookupError: the loss ran without ``apply``.
        """
        if not self.kept:
            raise LookupError(f"the loss ran and {NAME}.apply was not called in it")
        args = self.kept[0]
        named = zip(POLICIES, args, strict=False)
        policies = {name: x.detach() for name, x in named if isinstance(x, Tensor)}
        layout: dict[str, Any] = {
            "token_ids": args[IDS],
            "mask": args[MASK],
            "advantages": args[ADVANTAGES],
        }
        shape = policies["policy"].shape
        for name in ("token_ids", "advantages"):
            if not isinstance(layout[name], Tensor) or layout[name].shape[:1] != shape[:1]:
                del layout[name]
        return policies, layout
