"""AsyncGRPO: packed completions from vLLM, whose policy log-probs are the model's own outputs.

TRL's ``kl`` is k3 of KL(rollout || policy) there: not the drift from a reference, of which this
trainer has none, but the distance of trainer and sampler. Our pair says so: ``rollout_policy``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from klmonitor.hooks.feed import Around, argument
from klmonitor.hooks.modeloutputs import ModelOutputs
from klmonitor_trl.feed import TrainerCapture, TrainerFeed

KEYS = ("token_index", "old_log_probs", "segment_id")
"""What the loss of an `AsyncGRPOTrainer` must be given; an index of -1 is padding."""


class PackedCapture(TrainerCapture):
    """Around the loss of packed completions."""

    def __init__(self, feed: TrainerFeed) -> None:
        """A capture for one trainer."""
        self.feed = feed
        self._outputs = ModelOutputs(feed.model)

    @staticmethod
    def fits_class(trainer_class: Any) -> bool:
        """Whether the loss of a class of trainers reads the keys that ours does."""
        try:
            source = inspect.getsource(inspect.unwrap(trainer_class.compute_loss))
        except (OSError, TypeError):  # no source at hand: the first micro-batch will tell
            return True
        return all(f'"{key}"' in source for key in KEYS)

    def wraps(self) -> dict[str, Around]:
        """The loss, a public name."""
        return {"compute_loss": self.loss}

    def sources(self) -> dict[str, str]:
        """The two sides that there are."""
        return {"policy": "log_probs of the model's outputs", "rollout": "old_log_probs, vLLM"}

    def missing(self) -> dict[str, str]:
        """Why there is no reference."""
        return {
            "ref": "this trainer has no reference and no KL penalty",
            "old": "tokens come from vLLM, the trainer does not score them again before updating",
        }

    def close(self) -> None:
        """Take the forward hook off."""
        self._outputs.close()

    def loss(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around the loss of one micro-batch."""
        self._outputs.listen()
        try:
            result = original(*args, **kwargs)
        finally:
            self._outputs.stop()
        self.feed.guards["loss"](self._observe, args, kwargs)
        self._outputs.forget()
        return result

    def _observe(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        inputs = argument(args, kwargs, 1, "inputs")
        lost = [key for key in KEYS if key not in inputs]
        heard = [tensor for name, tensor, _ in self._outputs.kept if name == "log_probs"]
        if lost or not heard:
            what = f"no {lost[0]} in its inputs" if lost else "no log_probs in the model's outputs"
            raise LookupError(f"the packed loss of this TRL has {what}")
        selected = inputs["token_index"] >= 0
        index = inputs["token_index"][selected]
        labels = inputs["shift_labels"][inputs["attention_mask"].bool()]
        self.feed.observe(
            {
                "policy": heard[0].flatten()[index],
                "rollout": inputs["old_log_probs"][selected].to(heard[0].device),
            },
            token_ids=labels[index],
            sequence_ids=inputs["segment_id"][selected],
        )
