"""The log-probs that meet on verl's driver: the engine's, the old policy's, the reference's.

They are looked at where advantages are computed (V1 has its own function for that, V0 another,
which V1 calls): before, rejection has changed the mask, and each pair has its own: `rollout_old` is
of all tokens that were sampled, since it is what they are rejected by; `old_ref` is of those that
train. Nothing is fetched for it: V1's tokens and entropies come from its own debug metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from klmonitor.hooks.feed import Feed, argument
from klmonitor.hooks.remote import RemoteCapture
from klmonitor_verl.names import LOG_PROBS, MASK, PROMPT, TOKENS, identities, keys_of
from klmonitor_verl.settings import Settings

BEFORE, AFTER = "rollout_old", "old_ref"
"""Pairs of all tokens that were sampled, and of those that train."""


@dataclass
class _Seen:
    """What the calls before the advantages have shown of the batch at hand.

    Attributes:
        mask: before rejection.
        old: whose rows the next three are of.
        entropy: of the old policy at each position.
        tokens: ids of the responses.
        version: of each sequence's weights, and the trainer's.
    """

    mask: Tensor | None = None
    old: Tensor | None = None
    entropy: Tensor | None = None
    tokens: Tensor | None = None
    version: dict[str, Any] = field(default_factory=dict)

    def of(self, old: Tensor | None) -> dict[str, Any]:
        """Entropies and tokens, if these are the rows that they are of."""
        mine = self.old
        if mine is None or old is None or mine.shape != old.shape or not torch.equal(mine, old):
            return {}
        given = {"entropy": self.entropy, "token_ids": self.tokens}
        return {name: x for name, x in given.items() if x is not None and x.shape == old.shape}


class DriverCapture(RemoteCapture):
    """verl's.

    Attributes:
        observed: whether anything was since the step was closed.
    """

    def __init__(self, feed: Feed, settings: Settings, absent: Callable[[], Mapping[str, str]]):
        """For one driver.

        Args:
            feed: where log-probs go.
            settings: what verl's configuration says.
            absent: ``module.name`` -> why it could not be replaced.
        """
        super().__init__(feed, absent)
        self._settings = settings
        self.observed = False
        self._seen = _Seen()
        self._depth = 0

    # --- words -------------------------------------------------------------------------------
    def sources(self) -> dict[str, str]:
        """Policy -> where its log-probs come from."""
        found = {"policy": "the workers' policy loss"}
        if self._settings.bypass:
            found["rollout"] = "old_log_probs of the workers' policy loss"
            found["old"] = f"the rollout's log-probs: {self._settings.bypass}"
        else:
            found["old"] = "old_log_probs on the driver and in the workers' policy loss"
            if self._settings.rollout:
                found["rollout"] = "rollout_log_probs on the driver"
        if self._settings.reference:
            found["ref"] = "ref_log_prob on the driver and in the workers' policy loss"
        return found

    def missing(self) -> dict[str, str]:
        """Policy -> why it is not to be had."""
        return {
            "rollout": "actor_rollout_ref.rollout.calculate_log_probs is False",
            "ref": "neither actor.use_kl_loss nor algorithm.use_kl_in_reward is on",
            **super().missing(),
        }

    # --- around verl's functions -------------------------------------------------------------
    def correction(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around the rejection: the mask before it."""
        self._guarded(self._keep_mask, args, kwargs)
        return original(*args, **kwargs)

    def debugged(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around V1's debug metrics, which are given tokens and entropies."""
        result = original(*args, **kwargs)
        self._guarded(self._keep_debugged, args, kwargs)
        return result

    def old_log_prob(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around V0's pass for the old log-probs, whose entropies are dropped after a mean."""
        result = original(*args, **kwargs)
        self._guarded(self._keep_entropies, result)
        return result

    def versioned(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around V1's advantages: its tags say which weights sampled."""
        self._guarded(self._keep_versions, args, kwargs)
        return original(*args, **kwargs)

    def advantages(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around the advantages: all log-probs of the driver are there."""
        if self._depth == 0:
            self._guarded(self._observe, args, kwargs)
        self._depth += 1
        try:
            return original(*args, **kwargs)
        finally:
            self._depth -= 1

    def _guarded(self, call: Callable[..., Any], *args: Any) -> None:
        self.feed.guards["log-probs"](call, *args)

    def _keep_mask(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        self._seen.mask = argument(args, kwargs, 0, "batch").batch[MASK].clone()

    def _keep_debugged(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        batch = argument(args, kwargs, 0, "data").batch
        self._seen.old = batch[LOG_PROBS["old"]]
        self._seen.tokens = batch[TOKENS] if TOKENS in keys_of(batch) else None
        if "entropy" in keys_of(batch):
            self._seen.entropy = batch["entropy"]

    def _keep_entropies(self, result: Any) -> None:
        found = (result[0] if isinstance(result, tuple) else result).batch
        if found is not None and "entropys" in keys_of(found):
            self._seen.old, self._seen.entropy = found[LOG_PROBS["old"]], found["entropys"]

    def _keep_versions(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        trainer, batch = args[0], argument(args, kwargs, 1, "batch")
        newest = [int(tag["max_global_steps"]) for tag in batch.tags if "max_global_steps" in tag]
        if newest and len(newest) == len(batch.tags):
            self._seen.version = {
                "version": torch.tensor(newest),
                "current_version": max(int(trainer.global_steps) - 1, *newest),
            }

    # --- a batch -----------------------------------------------------------------------------
    def _observe(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Compare what the driver holds of a batch."""
        data, seen = argument(args, kwargs, 0, "data"), self._seen
        self._seen = _Seen()
        batch = data.batch
        held = {name: batch[key] for name, key in LOG_PROBS.items() if key in keys_of(batch)}
        if self._settings.bypass:
            held.pop("rollout", None)  # old is the rollout, whose comparison with itself is 0
        after = batch[MASK]
        before = after if seen.mask is None or seen.mask.shape != after.shape else seen.mask
        masks = {BEFORE: before, AFTER: after}
        masks = {pair: mask for pair, mask in masks.items() if set(pair.split("_")) <= set(held)}
        if not masks:
            return
        layout: dict[str, Any] = seen.of(held.get("old"))
        if TOKENS in keys_of(batch) and batch[TOKENS].shape == after.shape:
            layout["token_ids"] = batch[TOKENS]
        rows = len(after)
        prompts = identities(data.non_tensor_batch.get(PROMPT))
        if prompts is not None and len(prompts) == rows:
            layout["prompt_ids"] = prompts
        if len(seen.version.get("version", ())) == rows and "rollout" in held:
            layout |= seen.version
        groups = data.non_tensor_batch.get(self._settings.group_column)
        if groups is not None and self._settings.groups and len(groups) == rows:
            layout["group"] = [str(one) for one in np.asarray(groups).tolist()]
        self.feed.observe(held, phase="train", mask=masks, **layout)
        self.observed = True
