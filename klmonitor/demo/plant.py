"""One planted token: a reference log-prob that is altered as it rides along in TRL's batch.

What a broken reference, a wrong mask or a numerical accident does to one token of one step, at a
step and a place that are known. The trainer sees it as well: its own `kl` has it.
"""

from __future__ import annotations

from typing import Any

import torch


class Plant:
    """Gives one token of one step the log-ratio d = log ref - log policy that is asked for.

    Attributes:
        step: the optimizer step that is altered, from 1.
        log_ratio: d of that token, nats.
        token_id: the token, once it has been planted.
        done: whether it has been planted.
    """

    def __init__(self, step: int, log_ratio: float) -> None:
        """A plant that is not yet in a trainer."""
        self.step, self.log_ratio = step, log_ratio
        self.token_id: int | None = None
        self.done = False

    def into(self, trainer: Any) -> None:
        """Alter the batches of a GRPO trainer (one batch a step, with a reference)."""
        generate = trainer._generate_and_score_completions

        def altered(*args: Any, **kwargs: Any) -> Any:
            batch = generate(*args, **kwargs)
            if trainer.model.training and trainer.state.global_step == self.step - 1:
                self._alter(batch, trainer)
            return batch

        trainer._generate_and_score_completions = altered

    def _alter(self, batch: dict[str, Any], trainer: Any) -> None:
        """The policy's least likely token gets it: its reference log-prob stays the smallest."""
        log_probs = _policy_log_probs(batch, trainer)
        hidden = batch["completion_mask"] == 0
        place = int(log_probs.masked_fill(hidden, 0.0).argmin())
        row, column = divmod(place, log_probs.shape[1])
        batch["ref_per_token_logps"][row, column] = log_probs[row, column] + self.log_ratio
        self.token_id = int(batch["completion_ids"][row, column])
        self.done = True


@torch.no_grad()
def _policy_log_probs(batch: dict[str, Any], trainer: Any) -> torch.Tensor:
    """The policy's log-probs of a batch's completions, [B, T]; by the class's own function.

    The instance's may be wrapped, and whoever watches would take these for the trainer's.
    """
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    log_probs = type(trainer)._get_per_token_logps_and_entropies
    found = log_probs(trainer, trainer.model, ids, mask, batch["completion_ids"].shape[1])
    return found[0]  # type: ignore[no-any-return]
