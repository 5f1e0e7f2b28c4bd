"""What goes wrong in the demo: one token's reference log-prob, or the sampler's weights.

The trainer sees both as well: its own `kl` has the token, its reward the stale completions.
"""

from __future__ import annotations

from typing import Any

import torch


class Plant:
    """Gives one token of one step the log-ratio d = log ref - log policy that is asked for.

    What a broken reference, a wrong mask or a numerical accident does, at a step and a place that
    are known. The reference log-prob is altered as it rides along in TRL's batch.

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

    def __str__(self) -> str:
        if not self.done:
            return f"Nothing was planted: there was no step {self.step}."
        return f"Planted at step {self.step}: d = {self.log_ratio:+g}, token id {self.token_id}."

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
    return found[0]  # type: ignore[no-any-return]  # TRL: untyped


class StaleSampler:
    """Generates with the weights of the start, while the trainer's log-probs are up to date.

    What an inference engine does that was restarted and never got the trainer's weights.

    Attributes:
        step: from the generation of this optimizer step on, from 1.
        used: generations that it made.
    """

    def __init__(self, trainer: Any, step: int) -> None:
        """Stand between a trainer and its model's `generate`."""
        self.step, self.used = step, 0
        self._trainer, self._model = trainer, trainer.model
        self._start = {
            name: weight.detach().clone() for name, weight in self._model.named_parameters()
        }
        self._generate = self._model.generate
        self._model.generate = self._with_old_weights

    def __str__(self) -> str:
        return f"Generated with the weights of the start: {self.used} batches."

    def _with_old_weights(self, *args: Any, **kwargs: Any) -> Any:
        if self._trainer.state.global_step < self.step - 1:
            return self._generate(*args, **kwargs)
        self.used += 1
        now = {name: weight.detach().clone() for name, weight in self._model.named_parameters()}
        self._load(self._start)
        try:
            return self._generate(*args, **kwargs)
        finally:
            self._load(now)

    @torch.no_grad()
    def _load(self, weights: dict[str, torch.Tensor]) -> None:
        for name, weight in self._model.named_parameters():
            weight.copy_(weights[name])
