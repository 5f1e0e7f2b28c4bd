"""PPO (TRL <= 1.12) and the first RLOO (TRL <= 0.21): one long ``train``, no function to wrap.

Their log-probs are local variables of ``train`` when it logs a step, so they are read from the
stack there, and the step is closed there too: ``on_step_end`` comes after the row. What is known is
the sampler's side and the reference's: ``old_ref``, whose sums of k1 over sequences TRL logs as
``objective/kl``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from klmonitor.hooks.feed import Around
from klmonitor.hooks.prompts import prompt_keys
from klmonitor_trl.feed import TrainerCapture, TrainerFeed

LOCALS = ("logprobs", "ref_logprobs", "padding_mask", "responses")
"""Local variables of ``train``: log-probs [B, T], True where there is padding, token ids."""
DEPTH = 32
"""Frames above `log` in which ``train`` is looked for."""


class MonolithCapture(TrainerCapture):
    """Reads the log-probs of an update from the frame of ``train``."""

    closes_in_log = True

    def __init__(self, feed: TrainerFeed) -> None:
        """A capture for one trainer."""
        self.feed = feed

    @staticmethod
    def fits(trainer: Any) -> bool:
        """Whether the trainer's ``train`` holds what is read."""
        return MonolithCapture.fits_class(type(trainer))

    @staticmethod
    def fits_class(trainer_class: Any) -> bool:
        """Likewise, of a class."""
        code = getattr(getattr(trainer_class, "train", None), "__code__", None)
        return code is not None and set(LOCALS) <= set(code.co_varnames)

    def wraps(self) -> dict[str, Around]:
        """Nothing beside ``log``."""
        return {}

    def sources(self) -> dict[str, str]:
        """The sampler and the reference."""
        return {"old": "logprobs, a local of train()", "ref": "ref_logprobs, a local of train()"}

    def missing(self) -> dict[str, str]:
        """Why there are no others."""
        return {
            "policy": "train() drops it before it logs; policy/approxkl_avg is TRL's k2 of it",
            "rollout": "the policy itself samples",
        }

    def in_log(self) -> None:
        """Observe what `train` holds."""
        self.feed.guards["loss"](self._observe)

    def _observe(self) -> None:
        found = self._locals()
        layout = {}
        if "queries" in found:
            queries = found["queries"]
            padding = self.feed.trainer.processing_class.pad_token_id
            keys = prompt_keys(queries, queries != padding)
            layout["prompt_ids"] = keys if len(keys) == len(found["responses"]) else None
        self.feed.observe(
            {"old": found["logprobs"], "ref": found["ref_logprobs"]},
            mask=~found["padding_mask"],
            token_ids=found["responses"],
            phase="train",
            **layout,
        )

    def _locals(self) -> Mapping[str, Any]:
        """The variables of the running ``train``.

        Raises:
            LookupError: it is not on the stack, or holds other variables.
        """
        frame = sys._getframe(1)
        for _ in range(DEPTH):
            if frame.f_code.co_name == "train" and frame.f_locals.get("self") is self.feed.trainer:
                found = frame.f_locals
                lost = [name for name in LOCALS if name not in found]
                if lost:
                    raise LookupError(f"train() of this TRL holds no {lost[0]} when it logs")
                return found
            if frame.f_back is None:
                break
            frame = frame.f_back
        raise LookupError("train() is not on the stack when it logs")
