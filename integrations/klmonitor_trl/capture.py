"""GRPO, RLOO and their subclasses: from the trainer's calls to `Monitor.observe`.

Three functions of the trainer are wrapped. The one that computes log-probs tells us the policy's
(within the loss) and, while a batch is generated, the sampler's and the reference's. The one that
generates a batch gets our riders: tensors with one row per completion that TRL shuffles and splits
with its own, so that they arrive at the loss aligned. The loss ends a micro-batch: there all
log-probs meet the mask and go to the monitor.

Two of the three are private names of TRL. Without the first, the policy's log-probs are taken from
the outputs of the model (`outputs`); without the second nothing rides along, and what TRL itself
passes to the loss is compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from klmonitor.hooks.audit import Audit
from klmonitor.hooks.feed import Around, argument
from klmonitor.hooks.modeloutputs import ModelOutputs
from klmonitor.hooks.prompts import prompt_keys
from klmonitor.hooks.reference import Reference, kept_random_state, unchanged
from klmonitor_trl import describe
from klmonitor_trl.feed import TrainerCapture, TrainerFeed
from klmonitor_trl.fused import NAME, FusedLoss, fused_loss
from klmonitor_trl.names import (
    GENERATE,
    HELD,
    LOG_PROBS,
    is_rloo,
    log_prob_function,
    log_prob_functions,
)
from klmonitor_trl.reference import TrlBatch, evaluated

RIDER = "_klm_"
"""Prefix of the keys that ride along in TRL's batches."""


class BatchCapture(TrainerCapture):
    """The state between two wrapped calls: at most one tensor per policy."""

    scores_when_generating = True

    def __init__(
        self,
        feed: TrainerFeed,
        reference: Reference[TrlBatch] | None = None,
        groups: Collection[str] = (),
        group_column: str = "group",
        recompute: bool = False,
    ) -> None:
        """A capture for one trainer.

        Args:
            feed: the trainer and where its log-probs go.
            reference: evaluated on generation batches; None if TRL's own or none.
            groups: the declared groups.
            group_column: the column that names a prompt's group.
            recompute: compute the policy's log-probs once more where the loss does without.
        """
        self.feed = feed
        self._trainer = feed.trainer
        self._reference = reference
        self._groups = {name: index for index, name in enumerate(groups)}
        self._group_column = group_column
        self._recompute = recompute
        self.audit: Audit[Mapping[str, Any]] | None = None
        self._place: str | None = None
        self._caught: dict[str, Tensor] = {}
        self._entropy: Tensor | None = None
        self._name = log_prob_function(self._trainer)
        self._generates = callable(getattr(self._trainer, GENERATE, None))
        fused = fused_loss(self._trainer)
        self._fused = None if fused is None else FusedLoss(fused)
        self._outputs = None if self._name or fused else ModelOutputs(feed.model)
        self._log_probs = getattr(self._trainer, self._name) if self._name else None

    # --- what is bound -----------------------------------------------------------------------
    def wraps(self) -> dict[str, Around]:
        """Three functions, less those that this TRL lacks."""
        wanted: dict[str, Around] = {"compute_loss": self.loss}
        for name in log_prob_functions(self._trainer):
            wanted[name] = self.log_probs
        if self._generates:
            wanted[GENERATE] = self.generation
        return wanted

    def sources(self) -> dict[str, str]:
        """Policy -> where its log-probs come from."""
        where = f"{self._name} in compute_loss" if self._name else "the model's outputs"
        if self._fused is not None:
            where = f"{NAME}.apply in compute_loss"
        found = {"policy": where, **describe.sources(self._trainer, self._reference)}
        if is_rloo(self._trainer) and not (self._name and self._generates):
            del found["old"]  # TRL does not pass them to the loss
            found.pop("ref", None)
        return found

    def missing(self) -> dict[str, str]:
        """Policy -> why TRL does not hold its log-probs, and how to get them."""
        return describe.missing(self._trainer)

    def absent(self) -> dict[str, str]:
        """Private name -> what is done without it."""
        without = {}
        if not self._name:
            without[LOG_PROBS[0]] = "log-probs are taken from the model's outputs"
        if not self._generates:
            without[GENERATE] = "prompts are told apart in the loss, groups are not"
        if without and is_rloo(self._trainer):
            name = next(iter(without))
            without = {name: "RLOO passes no token's log-probs to its loss"}
        return without

    def close(self) -> None:
        """Take off what listens."""
        for ears in self._ears:
            ears.close()

    # --- around the trainer's functions ------------------------------------------------------
    def log_probs(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around the function that computes log-probs of sampled tokens."""
        result = original(*args, **kwargs)
        if self._place is not None:
            self.feed.guards["log-probs"](self._catch, result, args, kwargs)
        return result

    def generation(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around the function that generates and scores a batch."""
        self.feed.guards["generation"](self.feed.run.generated)
        started = time.perf_counter()
        output = self._within("generation", original, args, kwargs)
        seconds = time.perf_counter() - started
        self.feed.guards["generation"](self._send_along, output, args, kwargs, seconds)
        self._caught.clear()
        if self.audit is not None and self.feed.phase == "train":
            self.feed.guards["audit"](self._audit, output)
        return output

    def _audit(self, output: Any) -> None:
        """Look at the logits of a generation batch, if it is time."""
        step = self._trainer.state.global_step + 1
        if self.audit is None or not self.audit.due(step):
            return
        self.audit.look(output, counted(output), output["completion_ids"], step)

    def loss(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around the loss of one micro-batch."""
        for ears in self._ears:
            ears.listen()
        result = self._within("loss", original, args, kwargs)
        self.feed.guards["loss"](self._observe, args, kwargs)
        self._caught.clear()
        for ears in self._ears:
            ears.forget()
        return result

    @property
    def _ears(self) -> list[ModelOutputs | FusedLoss]:
        """What listens within the loss alone."""
        return [ears for ears in (self._outputs, self._fused) if ears is not None]

    def _within(self, place: str, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call the trainer's function, and catch the log-probs that it computes."""
        self._caught.clear()
        self._entropy = None
        self._place = place
        try:
            return original(*args, **kwargs)
        finally:
            self._place = None
            for ears in self._ears:
                ears.stop()

    def _catch(self, result: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        log_probs = result[0] if isinstance(result, tuple) else result
        if not isinstance(log_probs, Tensor):  # Unsloth's scores within the loss
            return
        model = argument(args, kwargs, 0, "model")
        if self.feed.is_reference(model):
            role = "ref"
        else:
            role = "policy" if self._place == "loss" else "old"
        if role not in self._caught:
            self._caught[role] = log_probs.detach() if log_probs.requires_grad else log_probs
            if role == "policy":
                self._entropy = entropies_of(result, log_probs)

    # --- generation --------------------------------------------------------------------------
    def _send_along(
        self, output: Any, args: Sequence[Any], kwargs: Mapping[str, Any], seconds: float
    ) -> None:
        """Add our riders to a generation batch."""
        riders = {"prompt": prompt_keys(output["prompt_ids"], output["prompt_mask"])}
        for policy in ("old", "ref"):
            if policy in self._caught and output.get(HELD[policy]) is None:
                riders[policy] = self._caught[policy]
        if self._groups:
            rows = argument(args, kwargs, 0, "inputs")
            riders["group"] = self._group_of(rows, output["prompt_ids"].device)
        if self._reference is not None:
            phase = self.feed.phase
            found = evaluated(self._reference, self._trainer, output, phase, seconds)
            if found is not None:
                riders["ref"] = found
        output.update({RIDER + name: tensor for name, tensor in riders.items()})

    def _group_of(self, rows: Sequence[Mapping[str, Any]], device: torch.device) -> Tensor:
        """Index of each row's group; one past the last for ``other``."""
        other = len(self._groups)
        indices = [self._groups.get(row.get(self._group_column, ""), other) for row in rows]
        return torch.tensor(indices, device=device)

    # --- loss --------------------------------------------------------------------------------
    def _observe(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Hand one micro-batch to the monitor."""
        inputs = argument(args, kwargs, 1, "inputs")
        prompts = inputs.get(RIDER + "prompt")
        if prompts is None and "prompt_mask" in inputs:
            prompts = prompt_keys(inputs["prompt_ids"], inputs["prompt_mask"])
        group = inputs.get(RIDER + "group")
        if self._fused is not None:
            self._observe_fused(self._fused, inputs, prompts, group)
            return
        policies = {"policy": self._policy(inputs)}
        for name, key in HELD.items():
            tensor = inputs.get(key)
            tensor = inputs.get(RIDER + name) if tensor is None else tensor
            if tensor is not None:
                policies[name] = tensor
        self.feed.observe(
            policies,
            mask=counted(inputs),
            token_ids=inputs["completion_ids"],
            prompt_ids=prompts,
            group=group,
            entropy=None if "old" in policies else self._entropy,  # it is the policy's own
            advantages=advantages_of(inputs),
        )

    def _observe_fused(self, fused: FusedLoss, inputs: Mapping[str, Any], *known: Any) -> None:
        """The same of a loss that scores within itself; our riders where rows are not shifted."""
        policies, layout = fused.heard()
        for name in ("old", "ref"):
            tensor = inputs.get(RIDER + name)
            if name in policies or tensor is None or inputs.get("max_left_pad"):
                continue
            if tensor.shape == policies["policy"].shape:
                policies[name] = tensor
        prompts, group = known
        self.feed.observe(policies, prompt_ids=prompts, group=group, **layout)

    def _policy(self, inputs: Mapping[str, Any]) -> Tensor:
        """The policy's log-probs of a micro-batch.

        Raises:
            LookupError: the loss computed none.
        """
        if "policy" in self._caught:
            return self._caught["policy"]
        if self._outputs is not None:
            temperature = float(getattr(self._trainer, "temperature", 1.0))
            found = self._outputs.log_probs(inputs["completion_ids"], temperature)
            if found is not None:
                return found
            raise LookupError("the model returned neither log_probs nor logits in the loss")
        if self._recompute:
            return self._compute(inputs)
        raise LookupError(
            "the loss ran and the trainer's log-prob function was not called in it "
            "(a fused loss, as Liger's, computes no log-probs): attach with recompute=True to "
            "have them computed once more"
        )

    @torch.no_grad()
    def _compute(self, inputs: Mapping[str, Any]) -> Tensor:
        """One more forward pass over a micro-batch."""
        assert self._log_probs is not None  # else there would be outputs
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        with kept_random_state(ids.device), unchanged(self.feed.model):
            found = self._log_probs(
                self._trainer.model, ids, mask, inputs["completion_ids"].shape[1]
            )
        return (found[0] if isinstance(found, tuple) else found).detach()  # type: ignore[no-any-return]  # TRL: untyped


def counted(inputs: Mapping[str, Any]) -> Tensor:
    """[B, T] which tokens of the completions are the policy's own."""
    mask: Tensor = inputs["completion_mask"]
    tools = inputs.get("tool_mask")
    return mask if tools is None else mask * tools


def entropies_of(result: Any, log_probs: Tensor) -> Tensor | None:
    """The entropies that TRL computed with some log-probs, where it did."""
    found = result[1] if isinstance(result, tuple) and len(result) > 1 else None
    if not isinstance(found, Tensor) or found.shape != log_probs.shape:
        return None
    return found.detach()


def advantages_of(inputs: Mapping[str, Any]) -> Tensor | None:
    """The advantages of a micro-batch, [B] or [B, T], where TRL passes them to the loss."""
    found = inputs.get("advantages")
    return found.detach() if isinstance(found, Tensor) and found.is_floating_point() else None
