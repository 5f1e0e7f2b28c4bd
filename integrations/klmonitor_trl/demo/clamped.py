"""A GRPO trainer whose KL term is k3 in the loss, clamped: what several trainers do.

TRL has no clamp, so the term is added here, where `klmonitor.attach` does not guess at it: the demo
tells klmonitor of it, as a user does.
"""

from __future__ import annotations

from typing import Any

import torch
from trl import GRPOTrainer


def clamped(limit: float) -> type[GRPOTrainer]:
    """TRL's trainer with its KL term clipped to `limit` nats a token."""

    class ClampedGRPOTrainer(GRPOTrainer):  # type: ignore[misc]  # TRL: untyped
        """Its own KL term is off in the loss, where the clamped one is."""

        def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
            found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
            self._last = found[0]
            return found

        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
            beta = float(vars(self)["beta"])
            self.beta = 0.0
            try:
                loss: torch.Tensor = super()._compute_loss(model, inputs)
            finally:
                self.beta = beta
            d, mask = inputs["ref_per_token_logps"] - self._last, inputs["completion_mask"]
            k3 = (torch.expm1(d) - d).clamp(max=limit)
            found: torch.Tensor = loss + beta * (k3 * mask).sum() / mask.sum()
            return found

    return ClampedGRPOTrainer
