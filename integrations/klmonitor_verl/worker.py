"""A verl worker: the new policy's log-probs, which no driver sees, summed and sent as bytes.

verl asks a registry for the policy loss of every micro-batch (`get_policy_loss_fn`): there, in all
versions and engines, the old and the new log-probs meet the mask. Around it `ppo_loss` (0.7 on)
knows the reference, the tokens, the prompts; before, the KL term of the loss (`kl_penalty`) is
given the reference. At the end of an update the ranks that hold outputs send their sums.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from klmonitor.hooks.feed import argument
from klmonitor.hooks.worker import RemoteWorker, place_among
from klmonitor_verl.names import identities, keys_of


class Worker(RemoteWorker):
    """What one process sums between two letters to its driver."""

    def __init__(self) -> None:
        """Nothing seen; Ray and the mailbox are looked for when an update begins."""
        super().__init__()
        self._data: Any = None
        self._output: Mapping[str, Any] = {}
        self._pending: dict[str, Tensor] = {}
        self._inside = threading.local()

    # --- around verl's functions -------------------------------------------------------------
    def ppo_loss(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around the loss of a micro-batch: what it was given is looked at once it is over."""
        self.guards["loss"](self._enter, args, kwargs)
        try:
            result = original(*args, **kwargs)
            self.guards["loss"](self._flush)
            return result
        finally:
            self._data, self._output, self._pending = None, {}, {}

    def policy_loss_fn(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around the registry: the loss that it gives, and a look at what goes in."""
        function = original(*args, **kwargs)
        return self.guards["loss"](self._looked_at, function) or function

    def kl_penalty(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around the KL term of the loss, which is given the reference's log-probs."""
        result = original(*args, **kwargs)
        if self._pending:
            self.guards["loss"](self._reference, args, kwargs)
        return result

    # --- a micro-batch -----------------------------------------------------------------------
    def _looked_at(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def loss(*args: Any, **kwargs: Any) -> Any:
            if getattr(self._inside, "on", False):  # a loss that calls another (bypass mode)
                return function(*args, **kwargs)
            self._inside.on = True
            try:
                result = function(*args, **kwargs)
            finally:
                self._inside.on = False
            if self.collector is not None and torch.is_grad_enabled():
                self.guards["loss"](self._caught, args, kwargs)
            return result

        return loss

    def _enter(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        self._pending = {}
        self._data = argument(args, kwargs, 2, "data")
        self._output = argument(args, kwargs, 1, "model_output")

    def _caught(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        self._flush()
        self._pending = {
            "old": argument(args, kwargs, 0, "old_log_prob").detach(),
            "policy": argument(args, kwargs, 1, "log_prob").detach(),
            "mask": argument(args, kwargs, 3, "response_mask").detach(),
        }

    def _reference(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        """The reference, if the term is of the log-probs that the loss has just been given."""
        policy = argument(args, kwargs, 0, "logprob")
        mine = self._pending["policy"]
        if policy.shape == mine.shape and policy.data_ptr() == mine.data_ptr():
            self._pending["ref"] = argument(args, kwargs, 1, "ref_logprob").detach()

    def _flush(self) -> None:
        """Sum the micro-batch of which all is known now."""
        given, self._pending = self._pending, {}
        if not given or self.collector is None:
            return
        known = self._known(given["policy"])
        if self.settings.get("bypass"):
            given["rollout"] = given.pop("old")
        self.observe(**{**known, **given})

    def _known(self, like: Tensor) -> dict[str, Any]:
        """What the loss was given beside the two policies, as far as it fits them."""
        data = self._data
        found: dict[str, Any] = {}
        if data is None:
            return found
        keys = keys_of(data)
        for name, theirs in (("ref", "ref_log_prob"), ("token_ids", "responses")):
            if theirs in keys:
                padded = data.select(theirs).to_padded_tensor()[theirs]
                if padded.shape == like.shape:
                    found[name] = padded
        prompts = identities(data["uid"]) if "uid" in keys else None
        if prompts is not None and len(prompts) == like.shape[0]:
            found["prompt_ids"] = prompts
        return found

    # --- an update ---------------------------------------------------------------------------
    def _begin(self) -> None:
        self._pending = {}
        super()._begin()

    def _end(self, owner: Any) -> None:
        self._flush()
        super()._end(owner)

    def _place(self, owner: Any) -> tuple[int, int, bool]:
        """Where verl's `TrainingWorker` stands, before 0.8 its actor."""
        engine = getattr(owner, "engine", None)
        if engine is not None:
            return (
                int(engine.get_data_parallel_rank()),
                int(engine.get_data_parallel_size()),
                bool(engine.is_mp_src_rank_with_outputs()),
            )
        return place_among(
            lambda: max(int(getattr(owner, "ulysses_sequence_parallel_size", 1) or 1), 1)
        )
