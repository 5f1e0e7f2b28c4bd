"""What TRL holds in a given configuration, what it does not and why, in words."""

from __future__ import annotations

from typing import Any

from klmonitor.hooks.reference import Reference


def sources(trainer: Any, reference: Reference[Any] | None) -> dict[str, str]:
    """Policy -> where its log-probs come from, for those beside the policy that are to be had.

    Args:
        trainer: a TRL trainer.
        reference: ours, None if TRL's own or none.
    """
    found = {}
    if reference is not None:
        found["ref"] = f"{reference.name}, one generation batch in {reference.every}"
    elif _beta(trainer):
        found["ref"] = f"TRL's reference, beta = {_beta(trainer):g}"
    if _reuses_samples(trainer):
        found["old"] = "old_per_token_logps"
    if getattr(trainer, "use_vllm", False):
        found["rollout"] = "sampling_per_token_logps, vLLM"
    return found


def missing(trainer: Any) -> dict[str, str]:
    """Policy -> why TRL does not hold its log-probs, and how to get them."""
    return {
        "ref": f"TRL computes none at beta = 0; {remedy(trainer)}",
        "old": "every step trains on fresh samples, so it equals policy",
        "rollout": "the policy itself samples (no vLLM)",
    }


def remedy(trainer: Any) -> str:
    """The line that gives a trainer without reference and without adapters one."""
    config = getattr(trainer.accelerator.unwrap_model(trainer.model), "config", None)
    name = getattr(config, "_name_or_path", "") or "<the model you start from>"
    return (
        "attach with  klmonitor.attach(trainer, reference="
        f'transformers.AutoModelForCausalLM.from_pretrained("{name}"))'
    )


def _beta(trainer: Any) -> float:
    """The weight of TRL's KL penalty."""
    return float(getattr(trainer, "beta", 0.0) or 0.0)


def _reuses_samples(trainer: Any) -> bool:
    """Whether TRL computes the log-probs of the policy that sampled."""
    args = trainer.args
    per_batch = getattr(args, "steps_per_generation", None) or 1
    updates = per_batch * (getattr(args, "num_iterations", None) or 1)
    if args.gradient_accumulation_steps % updates:
        return True
    if any(base.__name__ == "RLOOTrainer" for base in type(trainer).__mro__):
        return True
    corrected = getattr(trainer, "vllm_importance_sampling_correction", False)
    return bool(getattr(trainer, "use_vllm", False) and corrected)
