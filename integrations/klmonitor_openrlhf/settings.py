"""What OpenRLHF's arguments say of its policies, in the names of 0.10 and newer, or of 0.9."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

NAMES = {
    "beta": ("algo.kl.init_coef", "init_kl_coef"),
    "target": ("algo.kl.target", "kl_target"),
    "estimator": ("algo.kl.estimator", "kl_estimator"),
    "use_loss": ("algo.kl.use_loss", "use_kl_loss"),
    "unbiased": ("algo.kl.unbiased_gradient",),
    "advantage": ("algo.advantage.estimator", "advantage_estimator"),
    "gamma": ("algo.advantage.gamma", "gamma"),
    "correction_level": ("algo.advantage.is_correction_level",),
    "correction": ("algo.advantage.is_correction_enable", "enable_vllm_is_correction"),
    "clip": ("actor.eps_clip_low_high", "eps_clip_low_high"),
    "dual_clip": ("actor.dual_clip", "dual_clip"),
    "loss": ("actor.policy_loss_type", "policy_loss_type"),
    "samples": ("rollout.n_samples_per_prompt", "n_samples_per_prompt"),
    "rollout_batch": ("rollout.batch_size", "rollout_batch_size"),
    "train_batch": ("train.batch_size", "train_batch_size"),
    "epochs": ("train.max_epochs", "max_epochs"),
    "freezing": ("critic.freezing_steps", "freezing_actor_steps"),
    "ring": ("ds.ring_attn_size", "ring_attn_size"),
    "tensor_parallel": ("ds.tensor_parallel_size", "ds_tensor_parallel_size"),
    "save_steps": ("ckpt.save_steps", "save_steps"),
    "logging_steps": ("logger.logging_steps", "logging_steps"),
    "output_dir": ("ckpt.output_dir", "save_path"),
    "experiment": ("logger.wandb.run_name", "wandb_run_name"),
}
"""What we ask for -> OpenRLHF's names of it, the first that is there."""
NOT_HERE = (
    *("reference", "reference_every", "recompute", "groups", "group_column"),
    *("audit_every", "audit_positions"),
)
"""Options that are of other trainers."""
WHY = (
    "none of OpenRLHF's: it computes its own reference, knows no groups, and logits stay within "
    "its workers"
)


def at(args: Any, name: str, default: Any = None) -> Any:
    """One of `NAMES` of OpenRLHF's arguments; the default where it is not there or None."""
    for path in NAMES[name]:
        found = args
        for key in path.split("."):
            found = getattr(found, key, None)
        if found is not None:
            return found
    return default


def set_at(args: Any, name: str, value: Any) -> None:
    """Set one of `NAMES` where it is."""
    for path in NAMES[name]:
        *folders, last = path.split(".")
        owner = args
        for key in folders:
            owner = getattr(owner, key, None)
        if hasattr(owner, last):
            setattr(owner, last, value)
            return


@dataclass(frozen=True)
class Settings:
    """Of one run.

    Attributes:
        rollout: whether the engine is asked for its log-probs.
        to_get_rollout: the argument that does so in this version.
        reference: whether the reference's log-probs are computed.
        in_loss: whether the KL term is one of the loss, else it is in the reward.
        by_token: whether the ratio that the loss is clipped by is a token's.
        adaptive: whether its weight follows a target.
        copies: processes that see the same tokens, in consecutive ranks.
        freezing: the last step without an update of the policy.
        updates_a_step: optimizer steps of the policy in one of the trainer's; nan: unknown.
        logging_steps: steps in one row of its trackers.
        output_dir: where the trained model goes; None: not said.
    """

    rollout: bool
    to_get_rollout: str
    reference: bool
    in_loss: bool
    by_token: bool
    adaptive: bool
    copies: int
    freezing: int
    updates_a_step: float
    logging_steps: int
    output_dir: str | None

    @classmethod
    def read(cls, args: Any) -> Settings:
        """From the arguments of a run, as its trainer holds them."""
        level = at(args, "correction_level")
        if level is not None:
            asked, how = level != "off", "--algo.advantage.is_correction_level token"
        else:
            nested = hasattr(args, "algo")
            asked = bool(at(args, "correction"))
            how = f"--{NAMES['correction'][0 if nested else 1]}"
        directory = at(args, "output_dir")
        return cls(
            rollout=asked,
            to_get_rollout=how,
            reference=float(at(args, "beta", 0.0)) > 0,
            in_loss=bool(at(args, "use_loss")),
            by_token=at(args, "loss", "ppo") == "ppo",
            adaptive=bool(at(args, "target")),
            copies=max(int(at(args, "ring", 1)) * int(at(args, "tensor_parallel", 1)), 1),
            freezing=int(at(args, "freezing", -1)),
            updates_a_step=_updates_a_step(args),
            logging_steps=max(int(at(args, "logging_steps", 1)), 1),
            output_dir=None if directory is None else str(directory),
        )


def _updates_a_step(args: Any) -> float:
    names = ("samples", "rollout_batch", "train_batch", "epochs")
    samples, rollout, train, epochs = (at(args, name, math.nan) for name in names)
    try:
        return float(epochs * (samples * rollout // train))
    except (TypeError, ValueError, ZeroDivisionError):
        return math.nan
