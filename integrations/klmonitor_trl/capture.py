"""From a trainer's calls to `Monitor.observe`: who computed which log-probs, on which tokens.

Three functions of the trainer are wrapped. The one that computes log-probs tells us the policy's
(within the loss) and, while a batch is generated, the sampler's and the reference's. The one that
generates a batch gets our riders: tensors with one row per completion that TRL shuffles and splits
with its own, so that they arrive at the loss aligned. The loss ends a micro-batch: there all
log-probs meet the mask and go to the monitor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from klmonitor.monitor import Monitor
from klmonitor.pairs import default_pairs
from klmonitor_trl.bindings import Guard
from klmonitor_trl.prompts import prompt_keys
from klmonitor_trl.reference import Reference

RIDER = "_klm_"
"""Prefix of the keys that ride along in TRL's batches."""

HELD_BY_TRL = {
    "old": "old_per_token_logps",
    "ref": "ref_per_token_logps",
    "rollout": "sampling_per_token_logps",
}
"""Policy -> key of its log-probs in the batch, where TRL keeps them."""


class Capture:
    """The state between two wrapped calls: at most one tensor per policy.

    Attributes:
        seen: policy -> micro-batches in which its log-probs were observed.
    """

    def __init__(
        self,
        trainer: Any,
        monitor: Monitor,
        guards: Mapping[str, Guard],
        reference: Reference | None = None,
        groups: Collection[str] = (),
        group_column: str = "group",
    ) -> None:
        """A capture for one trainer.

        Args:
            trainer: the trainer, for its models and its mode.
            monitor: what receives the micro-batches.
            guards: boundaries named ``log-probs``, ``generation`` and ``loss``.
            reference: evaluated on generation batches; None if TRL's own or none.
            groups: the declared groups.
            group_column: the column that names a prompt's group.
        """
        self.seen: dict[str, int] = {}
        self._trainer, self._monitor, self._guards = trainer, monitor, guards
        self._reference = reference
        self._groups = {name: index for index, name in enumerate(groups)}
        self._group_column = group_column
        self._inner = trainer.accelerator.unwrap_model(trainer.model)
        self._place: str | None = None
        self._caught: dict[str, Tensor] = {}

    @property
    def phase(self) -> str:
        """``"train"`` or ``"eval"``, by the mode of the model, as TRL tells them apart."""
        return "train" if self._trainer.model.training else "eval"

    def log_probs(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around the function that computes log-probs of sampled tokens."""
        result = original(*args, **kwargs)
        if self._place is not None:
            self._guards["log-probs"].run(self._catch, result, args, kwargs)
        return result

    def generation(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around the function that generates and scores a batch."""
        started = time.perf_counter()
        output = self._within("generation", original, args, kwargs)
        seconds = time.perf_counter() - started
        self._guards["generation"].run(self._send_along, output, args, seconds)
        self._caught.clear()
        return output

    def loss(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around the loss of one micro-batch."""
        result = self._within("loss", original, args, kwargs)
        self._guards["loss"].run(self._observe, args, kwargs)
        self._caught.clear()
        return result

    def _within(self, place: str, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call the trainer's function, and catch the log-probs that it computes."""
        self._caught.clear()
        self._place = place
        try:
            return original(*args, **kwargs)
        finally:
            self._place = None

    def _catch(self, result: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        log_probs = result[0] if isinstance(result, tuple) else result
        model = kwargs["model"] if "model" in kwargs else args[0]
        self._caught.setdefault(self._role(model), log_probs.detach())

    def _role(self, model: Any) -> str:
        """Whose log-probs a model gives, here and now."""
        if model is getattr(self._trainer, "ref_model", None):
            return "ref"
        if getattr(self._inner, "_adapters_disabled", False):
            return "ref"
        if _active_adapter(self._inner) == "ref":
            return "ref"
        return "policy" if self._place == "loss" else "old"

    def _send_along(self, output: Any, args: Sequence[Any], seconds: float) -> None:
        """Add our riders to a generation batch."""
        riders: dict[str, Tensor] = {
            "prompt": prompt_keys(output["prompt_ids"], output["prompt_mask"])
        }
        for policy in ("old", "ref"):
            if policy in self._caught and output.get(HELD_BY_TRL[policy]) is None:
                riders[policy] = self._caught[policy]
        if self._groups:
            riders["group"] = self._group_of(args[0], output["prompt_ids"].device)
        if self._reference is not None:
            found = self._reference.evaluate(output, self.phase, seconds)
            if found is not None:
                riders["ref"] = found
        output.update({RIDER + name: tensor for name, tensor in riders.items()})

    def _group_of(self, rows: Sequence[Mapping[str, Any]], device: torch.device) -> Tensor:
        """Index of each row's group; one past the last for ``other``."""
        other = len(self._groups)
        indices = [self._groups.get(row.get(self._group_column, ""), other) for row in rows]
        return torch.tensor(indices, device=device)

    def _observe(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Hand one micro-batch to the monitor."""
        inputs = kwargs["inputs"] if "inputs" in kwargs else args[1]
        if "policy" not in self._caught:
            raise LookupError(
                "the loss ran and the trainer's log-prob function was not called in it "
                "(a fused loss computes no log-probs)"
            )
        policies = {"policy": self._caught["policy"]}
        for name, key in HELD_BY_TRL.items():
            tensor = inputs.get(key)
            tensor = inputs.get(RIDER + name) if tensor is None else tensor
            if tensor is not None:
                policies[name] = tensor.detach()
        for name in policies:
            self.seen[name] = self.seen.get(name, 0) + 1
        if not default_pairs(policies):
            return
        mask = inputs["completion_mask"]
        if inputs.get("tool_mask") is not None:
            mask = mask * inputs["tool_mask"]
        self._monitor.observe(
            **policies,
            mask=mask,
            token_ids=inputs["completion_ids"],
            prompt_ids=inputs.get(RIDER + "prompt"),
            group=inputs.get(RIDER + "group"),
            phase=self.phase,
        )


def _active_adapter(model: Any) -> str | None:
    """The adapter in use, None without PEFT or where several are active."""
    if not hasattr(model, "peft_config"):
        return None
    active = model.active_adapter
    return active if isinstance(active, str) else None
