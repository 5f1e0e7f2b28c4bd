"""What a column is: of which pair, which metric, and in words; most trainers' names say little.

Full names (``kl/policy_ref/k3/mean``, also behind ``train/`` or ``run name - ``, as wandb writes
them) say all. Short names are one pair's. Of other trainers' names those are read that are k3 per
token; the rest are explained where the user has to choose.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from klmonitor.pairs import PAIRS

Key = tuple[str, str]
"""Pair and metric."""

FULL = re.compile(rf"(?:^|.*/)kl/({'|'.join(pair.name for pair in PAIRS)})/(.+)")
STEP_COLUMNS = (
    "klmonitor/step",
    "train/global_step",
    "trainer/global_step",
    "training/global_step",
    "global_step",
    "global_steps",
    "step",
    "training_step",
    "train_step",
    "iteration",
    "iter",
    "update",
    "updates",
    "num_updates",
    "_step",
    "index",
)
"""What counts the trainer's steps, the better name first: wandb's own step counts its rows."""
SHORT = {
    "k3/mean": ("k3", "k3/mean", "k3_mean", "kl", "kl/mean", "kl_mean", "value"),
    "k3/se": ("se", "k3/se", "k3_se", "kl_se", "stderr"),
    "k1/mean": ("k1", "k1/mean", "k1_mean"),
    "k1/se": ("k1/se", "k1_se"),
    "tokens": ("tokens", "n", "num_tokens"),
}
"""Metric -> short names that mean it."""
PER_TOKEN: dict[str, Key] = {
    "actor/kl_loss": ("policy_ref", "k3/mean"),
    "rollout_corr/k3_kl": ("rollout_old", "k3/mean"),
}
"""Other trainers' names of k3 per token: what they mean."""
IN_WORDS = {
    "k3": "k3",
    "k1": "k1, which may be negative",
    "kl": "k3 in TRL's GRPO, k1 in its RLOO",
    "actor/kl_loss": "verl's KL loss of policy and ref: k3 unless kl_loss_type says otherwise",
    "kl_loss": "a KL loss of policy and ref: k3 in verl unless kl_loss_type says otherwise",
    "rollout_corr/k3_kl": "verl's k3 of rollout and old",
    "rollout_corr/kl": "verl's k1 of rollout and old",
    "actor/ppo_kl": "verl's k1 of old and policy, a mean of means",
    "ppo_kl": "k1 of old and policy in verl and OpenRLHF",
    "actor/reward_kl_penalty": "verl's penalty of old and ref, a mean of sequences' means",
    "objective/kl": "TRL's sum over each sequence, not a mean per token",
    "policy/approxkl_avg": "TRL's k2 of old and policy, padding included",
    "approx_kl": "k1 or k2 of old and policy",
    "vllm_kl": "OpenRLHF's KL of rollout and old",
}
"""What known columns are."""


def plain(name: str) -> str:
    """A column's own name: without a run's name before it, ``train/``, or capitals."""
    return name.rpartition(" - ")[2].strip().lower().removeprefix("train/")


def full_key(name: str) -> Key | None:
    """Pair and metric of a full name; evaluations and wandb's extremes are not the series."""
    own = name.rpartition(" - ")[2].strip()
    if own.endswith(("__MIN", "__MAX")) or own.startswith("eval/"):
        return None
    found = FULL.fullmatch(own)
    return (found[1], found[2]) if found else None


def short_key(name: str, pair: str) -> Key | None:
    """Pair and metric that a short name stands for, if any."""
    own = plain(name)
    if own in PER_TOKEN:
        return PER_TOKEN[own]
    return next(((pair, metric) for metric, known in SHORT.items() if own in known), None)


def in_words(name: str, values: Sequence[float]) -> str:
    """What a column is, from its name and its finite values."""
    negative = sum(value < 0 for value in values)
    if negative:
        seen = f"{negative} of {len(values)} values below 0, so a signed one, as k1 is"
    else:
        seen = f"never below 0, {min(values):.2g} to {max(values):.2g}"
    known = IN_WORDS.get(plain(name))
    return f"{known}; {seen}" if known and not negative else seen


def may_be_kl(name: str) -> bool:
    """Whether a name sounds like a KL."""
    own = plain(name)
    return not own.endswith(("__min", "__max")) and (own in IN_WORDS or "kl" in own)
