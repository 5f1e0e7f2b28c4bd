"""Write down what verl's own functions are given, apart from klmonitor: what truth is made of."""

import functools
from pathlib import Path

import torch

from klmonitor.hooks.imports import when_imported

CORRECTION = "trainer.ppo.rollout_corr_helper"
FIELDS = ("rollout_log_probs", "old_log_probs", "ref_log_prob", "response_mask")


def install(folder):
    """Wrap verl's functions once it has them; files go to `folder`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    state = {"mask": None, "driver": 0, "worker": 0, "inside": False}

    def replaced(owner, *, name, around):
        original = getattr(owner, name)

        @functools.wraps(original)
        def wrapper(*args, **kwargs):
            return around(original, *args, **kwargs)

        setattr(owner, name, wrapper)

    def correction(original, batch, *args, **kwargs):
        state["mask"] = batch.batch["response_mask"].clone()
        return original(batch, *args, **kwargs)

    def advantages(original, data, *args, **kwargs):
        if state["inside"]:
            return original(data, *args, **kwargs)
        keys = set(data.batch.keys())
        found = {name: data.batch[name].clone() for name in FIELDS if name in keys}
        mask, state["mask"] = state["mask"], None
        found["before"] = found["response_mask"] if mask is None else mask
        torch.save(found, f"{folder}/driver_{state['driver']:03d}.pt")
        state["driver"] += 1
        state["inside"] = True
        try:
            return original(data, *args, **kwargs)
        finally:
            state["inside"] = False

    def ppo_loss(original, config, model_output, data, dp_group=None):
        from verl.workers.utils.padding import no_padding_2_padding

        if torch.is_grad_enabled():
            keys = [name for name in FIELDS[1:] if name in set(data.keys())]
            padded = data.select(*keys).to_padded_tensor()
            found = {name: padded[name].clone() for name in keys}
            found["policy"] = no_padding_2_padding(model_output["log_probs"], data).detach().clone()
            rank = torch.distributed.get_rank()
            torch.save(found, f"{folder}/worker_{rank}_{state['worker']:03d}.pt")
            state["worker"] += 1
        return original(config, model_output, data, dp_group)

    for module, name, around in (
        (CORRECTION, "compute_rollout_correction_and_add_to_batch", correction),
        ("trainer.ppo.ray_trainer", "compute_advantage", advantages),
        ("trainer.ppo.v1.utils", "compute_advantage_for_multi_trajectories", advantages),
        ("workers.utils.losses", "ppo_loss", ppo_loss),
    ):  # fmt: skip
        module = f"verl.{module}"
        when_imported(module, functools.partial(replaced, name=name, around=around))
