"""verl's names for what we need of its batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

LOG_PROBS = {"rollout": "rollout_log_probs", "old": "old_log_probs", "ref": "ref_log_prob"}
"""Policy -> key of its log-probs in a batch of verl's driver."""
MASK, TOKENS, PROMPT = "response_mask", "responses", "uid"


def keys_of(batch: Any) -> set[str]:
    """Keys of one of verl's batches; a `TensorDict` may refuse ``key in batch``."""
    return set(batch.keys())


def identities(uids: Any) -> list[str] | None:
    """Ids of prompts as strings, whatever verl keeps them in; None: they are not given."""
    if uids is None:
        return None
    if hasattr(uids, "tolist"):
        uids = uids.tolist()
    if isinstance(uids, str) or not isinstance(uids, Iterable):
        return None
    return [str(getattr(one, "data", one)) for one in uids]
