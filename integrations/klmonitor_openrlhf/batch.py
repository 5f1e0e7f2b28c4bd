"""What we read of an `Experience` of OpenRLHF's, on its driver and in its workers alike.

Log-probs and the mask are [B, A]: A is one less than the columns of ``sequences`` [B, A + 1], since
the first token has no log-prob, and covers the prompt, which the mask leaves out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from klmonitor.hooks.prompts import prompt_keys


def layout_of(experience: Any, mask: Tensor) -> dict[str, Any]:
    """Tokens and prompts, as `Observer.observe` takes them; what does not fit the mask is left out.

    A prompt is known by its tokens, those before the first that was sampled: OpenRLHF's ``index``
    counts samples.

    Args:
        experience: a batch.
        mask: [B, A], 1 where a token was sampled.
    """
    sequences = getattr(experience, "sequences", None)
    if sequences is None or tuple(sequences.shape) != (mask.shape[0], mask.shape[1] + 1):
        return {}
    before = sequences[:, :-1]
    places = torch.arange(mask.shape[1], device=mask.device)
    first = torch.where(mask.bool(), places, mask.shape[1]).amin(1, keepdim=True)
    prompt = places[None] <= first  # the token before the first sampled one is its prompt's last
    attention = getattr(experience, "attention_mask", None)
    if attention is not None and attention.shape == sequences.shape:
        prompt &= attention[:, :-1].bool()
    return {"token_ids": sequences[:, 1:], "prompt_ids": prompt_keys(before, prompt)}
