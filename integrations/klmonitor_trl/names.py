"""The names by which this package knows TRL: its private functions, and its classes."""

from __future__ import annotations

from typing import Any

LOG_PROBS = ("_get_per_token_logps_and_entropies", "_get_per_token_logps")
"""TRL's log-prob function, newest first."""
FLATTENED = ("_get_per_token_logps_and_entropies_flattened", "_get_per_token_logps_flattened")
"""What axolotl's trainer calls in their place when it packs its batches (``batch_flattening``)."""
GENERATE = "_generate_and_score_completions"
HELD = {
    "old": "old_per_token_logps",
    "ref": "ref_per_token_logps",
    "rollout": "sampling_per_token_logps",
}
"""Policy -> key of its log-probs in the batch, where TRL keeps them."""


def log_prob_function(trainer: Any) -> str | None:
    """Name of the trainer's log-prob function, None if it has none of those that are known."""
    return next((name for name in LOG_PROBS if callable(getattr(trainer, name, None))), None)


def log_prob_functions(trainer: Any) -> list[str]:
    """Names of all functions that give a trainer log-probs of sampled tokens, [B, T]."""
    main = log_prob_function(trainer)
    packed = [name for name in FLATTENED if callable(getattr(trainer, name, None))]
    return [main, *packed] if main else packed


def derives_from(trainer: Any, *classes: str) -> bool:
    """Whether a trainer is, or derives from, one of TRL's classes of these names."""
    return any(base.__name__ in classes for base in type(trainer).__mro__)


def is_rloo(trainer: Any) -> bool:
    """Whether a trainer is TRL's `RLOOTrainer` or derives from it."""
    return derives_from(trainer, "RLOOTrainer")
