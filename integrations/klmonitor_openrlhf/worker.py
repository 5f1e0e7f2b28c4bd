"""An OpenRLHF worker: the new policy's log-probs, which no driver sees, summed and sent as bytes.

`ActorPPOTrainer.training_step` is given a micro-batch with the reference; within it `PolicyLoss` is
given the new and the old log-probs. Around `ppo_train`, an update, sums are begun and sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from klmonitor.hooks.feed import argument
from klmonitor.hooks.worker import RemoteWorker, place_among
from klmonitor_openrlhf.batch import layout_of
from klmonitor_openrlhf.settings import Settings


class Worker(RemoteWorker):
    """What one process sums between two letters to its driver."""

    def __init__(self) -> None:
        """Nothing seen; Ray and the mailbox are looked for when an update begins."""
        super().__init__()
        self._experience: Any = None
        self._beta: float | None = None

    # --- around OpenRLHF's functions ---------------------------------------------------------
    def micro_batch(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around a micro-batch: what it was given."""
        self.guards["loss"](self._enter, args, kwargs)
        try:
            return original(*args, **kwargs)
        finally:
            self._experience = self._beta = None

    def loss(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around the policy loss: what went into it is looked at once it is over."""
        result = original(*args, **kwargs)
        if self.collector is not None and torch.is_grad_enabled():
            self.guards["loss"](self._caught, args, kwargs)
        return result

    # --- a micro-batch -----------------------------------------------------------------------
    def _enter(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        self._experience = argument(args, kwargs, 1, "experience")
        if self.settings.get("adaptive") and self.settings.get("penalty"):
            self._beta = float(argument(args, kwargs, 2, "kl_ctl"))

    def _caught(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        policy = argument(args, kwargs, 1, "log_probs").detach()
        mask = argument(args, kwargs, 4, "action_mask")
        given: dict[str, Any] = {
            "policy": policy,
            "old": argument(args, kwargs, 2, "old_log_probs").detach(),
            "mask": mask,
        }
        if self.settings.get("by_token"):  # else no token's own ratio is what is clipped
            given["advantages"] = argument(args, kwargs, 3, "advantages").detach()
        experience = self._experience
        if experience is not None:
            given |= layout_of(experience, mask)
            ref = getattr(experience, "base_action_log_probs", None)
            if ref is not None and ref.shape == policy.shape:
                given |= {"ref": ref, "beta": self._beta}
        self.observe(**given)

    # --- an update ---------------------------------------------------------------------------
    def _place(self, owner: Any) -> tuple[int, int, bool]:
        """Where OpenRLHF's `ActorPPOTrainer` stands."""
        return place_among(lambda: Settings.read(owner.args).copies)
