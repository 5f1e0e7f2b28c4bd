"""Which capture fits a trainer: chosen by what it has, never by a version.

The pair and its direction follow from what the trainer knows, whatever it calls ``kl`` itself:

| trainer | pairs | TRL's own number |
|---|---|---|
| GRPO and subclasses | policy_ref, old_policy, rollout_* | ``kl``: k3(policy, ref) |
| RLOO | old_ref or policy_ref, old_policy | ``kl``: k1(old, ref) |
| AsyncGRPO | rollout_policy | ``kl``: k3(rollout, policy) |
| OnlineDPO, NashMD, XPO | policy_ref | ``objective/kl``: sums of k1 |
| PPO, RLOO up to 0.21 | old_ref | ``objective/kl``: sums of k1 or k3 |
"""

from __future__ import annotations

import inspect
from importlib.metadata import version
from typing import Any

from klmonitor.hooks.options import Options
from klmonitor.hooks.reference import Reference
from klmonitor_trl.capture import BatchCapture
from klmonitor_trl.feed import TrainerCapture, TrainerFeed
from klmonitor_trl.monolith import LOCALS, MonolithCapture
from klmonitor_trl.names import GENERATE, derives_from, is_rloo, log_prob_function
from klmonitor_trl.packed import KEYS, PackedCapture
from klmonitor_trl.pairwise import COMPUTE, FORWARD, PairwiseCapture

BATCH = ("GRPOTrainer", "RLOOTrainer")
PACKED = ("AsyncGRPOTrainer",)
PAIRWISE = ("OnlineDPOTrainer", "NashMDTrainer", "XPOTrainer")
MONOLITH = ("PPOTrainer", "RLOOTrainer")


def kind_of(trainer: Any) -> str:
    """The capture for a trainer: ``"batch"``, ``"packed"``, ``"pairwise"`` or ``"monolith"``.

    Raises:
        TypeError: there is none; the message names what the trainer lacks, or why.
    """
    if derives_from(trainer, *MONOLITH) and MonolithCapture.fits(trainer):
        return "monolith"
    if derives_from(trainer, *PACKED) and not derives_from(trainer, *BATCH):  # axolotl's is a GRPO
        if PackedCapture.fits_class(type(trainer)):
            return "packed"
        raise _refusal(trainer, f"packs its batches without {' and '.join(KEYS)}")
    if derives_from(trainer, *PAIRWISE):
        if PairwiseCapture.fits(trainer):
            return "pairwise"
        raise _refusal(trainer, f"has neither {FORWARD} nor {COMPUTE}")
    if derives_from(trainer, *BATCH) or (log_prob_function(trainer) and hasattr(trainer, GENERATE)):
        if _loss_is_its_own(trainer):
            return "batch"
        raise _refusal(trainer, "has no compute_loss of its own")
    if derives_from(trainer, *MONOLITH):
        raise _refusal(trainer, f"has a train() without {', '.join(LOCALS)}")
    raise _refusal(trainer, f"has no {GENERATE}: it trains on no tokens of its own policy")


def watched_pairs(trainer: Any, kind: str) -> tuple[str, ...] | None:
    """Names of the pairs to watch; None: those that the captured policies allow.

    RLOO's penalty and its ``kl`` are those of the sampler, KL(old || ref), though the policy's
    log-probs are known as well.
    """
    if kind == "batch" and is_rloo(trainer):
        return "old_ref", "old_policy", "rollout_old"
    return None


def capture_for(
    trainer: Any, kind: str, feed: TrainerFeed, options: Options, reference: Reference[Any] | None
) -> TrainerCapture:
    """The capture of a kind."""
    if kind == "batch":
        return BatchCapture(
            feed, reference, options.groups, options.group_column, options.recompute
        )
    if kind == "packed":
        return PackedCapture(feed)
    return PairwiseCapture(feed) if kind == "pairwise" else MonolithCapture(feed)


def _loss_is_its_own(trainer: Any) -> bool:
    """Whether the loss is given a batch with completions, and not that of a plain `Trainer`."""
    loss = inspect.getattr_static(type(trainer), "compute_loss", None)
    return loss is not None and not loss.__module__.startswith("transformers.")


def _refusal(trainer: Any, why: str) -> TypeError:
    return TypeError(
        f"klmonitor cannot watch a {type(trainer).__name__} of TRL {version('trl')}, because it "
        f"{why}; call Monitor.observe(policy=..., ref=...) per micro-batch and Monitor.step(n) per "
        "step yourself"
    )
