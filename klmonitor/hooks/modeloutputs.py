"""Log-probs from what the model itself returns: the way without any private name of TRL.

A forward hook on ``trainer.model`` sees every output of the policy; it listens only while the
loss is computed. From TRL 1.15 on an output carries ``log_probs`` of the labels; before, the
sampled tokens' log-probs follow from the logits and the trainer's temperature, to 1e-6 nats.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from klmonitor.hooks.listener import Listener


class ModelOutputs(Listener[tuple[str, Tensor, int]]):
    """Keeps a model's outputs: log-probs if there are any, else logits.

    Of each it is known what it is, the tensor, and how often it had been written to when we saw it.
    """

    def __init__(self, model: Any) -> None:
        """Put the hook on."""
        super().__init__()
        self._off = model.register_forward_hook(self._hear).remove

    def _hear(self, _module: Any, _inputs: Any, output: Any) -> None:
        if not self._listening:
            return
        for name in ("log_probs", "logits"):
            tensor = getattr(output, name, None)
            if isinstance(tensor, Tensor):
                self.kept.append((name, tensor.detach(), tensor._version))
                return

    @torch.no_grad()
    def log_probs(self, completion_ids: Tensor, temperature: float) -> Tensor | None:
        """Log-probs of the completions, [B, T], from all outputs heard; None if there are none.

        Args:
            completion_ids: [B, T], the last T tokens of what the model read.
            temperature: by which the trainer divides logits.
        """
        parts, row = [], 0
        length = completion_ids.shape[1]
        for name, tensor, version in self.kept:
            if name == "log_probs":
                part = tensor[:, -length:]
            else:
                # Some versions of TRL divide the logits in place: those are divided already.
                divisor = temperature if tensor._version == version else 1.0
                ids = completion_ids[row : row + tensor.shape[0]]
                part = sampled(tensor[:, -length - 1 : -1], ids, divisor)
            parts.append(part)
            row += part.shape[0]
        return torch.cat(parts) if parts else None


def sampled(logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Log-probs of tokens, in float32 and a row at a time, so that logits are never copied whole.

    Args:
        logits: [B, T, V].
        ids: [B, T].
        temperature: by which logits are divided.
    """
    rows = []
    for scores, tokens in zip(logits, ids, strict=True):
        scaled = scores.float() / temperature
        chosen = scaled.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        rows.append(chosen - scaled.logsumexp(-1))
    return torch.stack(rows)
