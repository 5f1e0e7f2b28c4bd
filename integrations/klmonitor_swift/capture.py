"""ms-swift's GRPO: the policy's log-probs meet the others where the loss of a micro-batch is made.

``_compute_loss_and_metrics(model, model_inputs, grpo_batch)`` is given the old policy's, the
reference's and the engine's, [B, T], and asks the trainer's own log-prob function for the policy's.
The T positions are the last ones of the model's input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from klmonitor.hooks.feed import Around, argument
from klmonitor.hooks.prompts import prompt_keys
from klmonitor_trl import names
from klmonitor_trl.feed import TrainerCapture, TrainerFeed
from klmonitor_trl.names import GENERATE, LOG_PROBS

LOSS = "_compute_loss_and_metrics"
FUSED = "compute_liger_loss"
HELD = {**names.HELD, "rollout": "rollout_per_token_logps"}
"""Policy -> attribute of the batch."""


class SwiftCapture(TrainerCapture):
    """The state between two wrapped calls: the policy's log-probs of one micro-batch."""

    scores_when_generating = True

    def __init__(self, feed: TrainerFeed) -> None:
        """For one trainer."""
        self.feed = feed
        self._trainer = feed.trainer
        self._inside = False
        self._policy: Tensor | None = None

    # --- words -------------------------------------------------------------------------------
    def wraps(self) -> dict[str, Around]:
        """Where a batch is generated, where it is scored, where its loss is made."""
        wanted = {GENERATE: self.generation, LOG_PROBS[0]: self.log_probs, LOSS: self.loss}
        return {name: wanted[name] for name in wanted if hasattr(self._trainer, name)}

    def sources(self) -> dict[str, str]:
        """Policy -> where its log-probs come from."""
        if self._fused:
            return {}
        trainer = self._trainer
        found = {"policy": f"{LOG_PROBS[0]} in {LOSS}", "old": HELD["old"]}
        if getattr(trainer, "beta", 0.0):
            found["ref"] = f"ms-swift's reference, beta = {trainer.beta:g}"
        if getattr(trainer, "use_vllm", False):
            found["rollout"] = f"{HELD['rollout']}, vLLM"
        return found

    def missing(self) -> dict[str, str]:
        """Policy -> why it is not to be had."""
        if self._fused:
            why = "the fused loss (use_liger_kernel) computes no log-probs"
            return dict.fromkeys(("policy", "old", "ref", "rollout"), why)
        return {
            "ref": "ms-swift computes none at beta = 0",
            "rollout": "the policy itself samples (no vLLM)",
        }

    def absent(self) -> dict[str, str]:
        """Private name that this ms-swift lacks -> what is done without it."""
        return {FUSED: "log-probs are not to be had"} if self._fused else {}

    @property
    def _fused(self) -> bool:
        return bool(getattr(self._trainer, "use_liger_loss", False))

    # --- around the trainer's functions ------------------------------------------------------
    def generation(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around the generation and scoring of a batch."""
        self.feed.guards["generation"](self.feed.run.generated)
        return original(*args, **kwargs)

    def log_probs(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around the trainer's log-prob function."""
        result = original(*args, **kwargs)
        if self._inside:
            self.feed.guards["log-probs"](self._catch, result)
        return result

    def loss(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around the loss of one micro-batch."""
        self._inside, self._policy = True, None
        try:
            result = original(*args, **kwargs)
        finally:
            self._inside = False
        self.feed.guards["loss"](self._observe, args, kwargs)
        self._policy = None
        return result

    def _catch(self, result: Any) -> None:
        if self._policy is None:
            self._policy = result[0].detach()

    def _observe(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        inputs = argument(args, kwargs, 1, "model_inputs")
        batch = argument(args, kwargs, 2, "grpo_batch")
        if self._policy is None:
            raise LookupError(f"{LOSS} ran and {LOG_PROBS[0]} was not called in it")
        policies = {"policy": self._policy}
        for name, key in HELD.items():
            tensor = getattr(batch, key, None)
            if tensor is not None:
                policies[name] = tensor
        mask = batch.completion_mask
        ids, prompts = tokens_of(inputs, mask)
        self.feed.observe(
            policies,
            mask=mask,
            token_ids=ids,
            prompt_ids=prompts,
            advantages=getattr(batch, "advantages", None),
        )


def tokens_of(inputs: Mapping[str, Any], mask: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Ids of the T last positions and keys of the prompts; nothing where rows are packed.

    Args:
        inputs: the model's, with ``input_ids`` [B, L].
        mask: [B, T] which of the last T positions are completion.
    """
    ids = inputs["input_ids"]
    rows, length = mask.shape
    if ids.shape[0] != rows or ids.shape[1] < length or inputs.get("attention_mask") is None:
        return None, None
    begins = ids.shape[1] - length + (mask != 0).to(torch.int64).argmax(1, keepdim=True)
    before = torch.arange(ids.shape[1], device=ids.device)[None] < begins
    prompt = before & (inputs["attention_mask"] != 0)
    return ids[:, -length:], prompt_keys(ids, prompt)
