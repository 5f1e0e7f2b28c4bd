"""OnlineDPO, NashMD and XPO: log-probs of whole completions, inside ``training_step``.

All three compare the policy with the reference on completions that the policy drew, and log the
sum of k1 over a sequence as ``objective/kl``. OnlineDPO counts padding in it, which is no token of
any policy: ours is masked, so the two numbers differ where completions have different lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from klmonitor.hooks.feed import Around, argument
from klmonitor.hooks.prompts import prompt_keys
from klmonitor_trl.feed import TrainerCapture, TrainerFeed

FORWARD = "_forward"
COMPUTE = "_compute_logprobs"


class PairwiseCapture(TrainerCapture):
    """Around the function that scores completions, and the step that calls it."""

    def __init__(self, feed: TrainerFeed) -> None:
        """A capture for one trainer."""
        self.feed = feed
        self._name = COMPUTE if hasattr(feed.trainer, COMPUTE) else FORWARD
        self._caught: dict[str, Tensor] = {}
        self._layout: dict[str, Tensor] = {}

    @staticmethod
    def fits(trainer: Any) -> bool:
        """Whether the trainer has a function that scores completions."""
        return any(callable(getattr(trainer, name, None)) for name in (COMPUTE, FORWARD))

    def wraps(self) -> dict[str, Around]:
        """The scoring function and the step."""
        around = self.forward if self._name == FORWARD else self.compute
        return {self._name: around, "training_step": self.training_step}

    def sources(self) -> dict[str, str]:
        """Policy and reference."""
        return {"policy": f"{self._name} in training_step", "ref": f"{self._name}, TRL's reference"}

    def missing(self) -> dict[str, str]:
        """Why there are no others."""
        return {
            "old": "every step trains on fresh samples, so it equals policy",
            "rollout": "the trainer keeps no log-probs of the engine",
        }

    def forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around OnlineDPO's ``_forward(model, prompt_ids, prompt_mask, completion_ids, ...)``."""
        result = original(*args, **kwargs)
        self.feed.guards["log-probs"](self._catch_one, result, args, kwargs)
        return result

    def compute(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around ``_compute_logprobs(model, model_data, ..., context_length)``.

        NashMD's returns (policy, reference) on the model's completions; XPO's has the same two
        first and last, and those of the reference's completions between them.
        """
        result = original(*args, **kwargs)
        self.feed.guards["log-probs"](self._catch_both, result, args, kwargs)
        return result

    def training_step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around one micro-batch."""
        self._caught.clear()
        result = original(*args, **kwargs)
        self.feed.guards["loss"](self._observe)
        self._caught.clear()
        self._layout.clear()
        return result

    def _catch_one(self, result: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        model = argument(args, kwargs, 0, "model")
        role = "ref" if self.feed.is_reference(model) else "policy"
        self._caught.setdefault(role, result.detach())
        prompt_ids = argument(args, kwargs, 1, "prompt_ids")
        prompt_mask = argument(args, kwargs, 2, "prompt_mask", "prompt_attention_mask")
        self._layout = {
            "mask": argument(args, kwargs, 4, "completion_mask", "completion_attention_mask"),
            "token_ids": argument(args, kwargs, 3, "completion_ids"),
            "prompt_ids": prompt_keys(prompt_ids, prompt_mask),
        }

    def _catch_both(
        self, result: Sequence[Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        self._caught = {"policy": result[0].detach(), "ref": result[-1].detach()}
        data = argument(args, kwargs, 1, "model_data")
        start = data["input_ids"].shape[1] - result[0].shape[1]
        ids, mask = data["input_ids"], data["attention_mask"]
        self._layout = {
            "mask": mask[:, start:],
            "token_ids": ids[:, start:],
            "prompt_ids": prompt_keys(ids[:, :start], mask[:, :start]),
        }

    def _observe(self) -> None:
        if set(self._caught) != {"policy", "ref"}:
            held = ", ".join(self._caught) or "nobody"
            raise LookupError(f"{self._name} gave the log-probs of {held}: both sides are needed")
        self.feed.observe(self._caught, **self._layout, phase="train")
