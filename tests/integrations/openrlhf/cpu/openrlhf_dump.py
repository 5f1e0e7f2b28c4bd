"""Write down what OpenRLHF's own functions are given, apart from klmonitor, for the truth."""

import functools
from pathlib import Path

import torch

from klmonitor.hooks.imports import when_imported

FIELDS = ("rollout_log_probs", "action_log_probs", "base_action_log_probs", "action_mask")


def install(folder):
    """Wrap OpenRLHF's functions once it has them; files go to `folder`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    state = {"driver": 0, "worker": 0, "bases": [], "experience": None}

    def save(name, found):
        torch.save({key: x.detach().clone() for key, x in found.items() if x is not None}, name)

    def maker(module):
        owner = module.RemoteExperienceMaker
        make, approx = owner.make_experience, module.compute_approx_kl

        @functools.wraps(approx)
        def compute_approx_kl(log_probs, log_probs_base, *args, **kwargs):
            state["bases"].append(log_probs_base.clone())
            return approx(log_probs, log_probs_base, *args, **kwargs)

        @functools.wraps(make)
        def make_experience(self, *args, **kwargs):
            state["bases"] = []
            samples = make(self, *args, **kwargs)
            for number, one in enumerate(samples):
                found = {name: getattr(one, name) for name in FIELDS}
                if state["bases"]:
                    found["base_action_log_probs"] = state["bases"][number]
                save(f"{folder}/driver_{state['driver']:03d}_{number:03d}.pt", found)
            state["driver"] += 1
            return samples

        module.compute_approx_kl, owner.make_experience = compute_approx_kl, make_experience

    def actor(module):
        owner = module.ActorPPOTrainer
        step = owner.training_step

        @functools.wraps(step)
        def training_step(self, experience, *args, **kwargs):
            state["experience"] = experience
            return step(self, experience, *args, **kwargs)

        owner.training_step = training_step

    def loss(module):
        forward = module.PolicyLoss.forward

        @functools.wraps(forward)
        def given(self, log_probs, old_log_probs, advantages, action_mask=None, **kwargs):
            result = forward(
                self, log_probs, old_log_probs, advantages, action_mask=action_mask, **kwargs
            )
            found = {
                "policy": log_probs,
                "action_log_probs": old_log_probs,
                "action_mask": action_mask,
                "advantages": advantages,
                "base_action_log_probs": state["experience"].base_action_log_probs,
            }
            rank = torch.distributed.get_rank()
            save(f"{folder}/worker_{rank}_{state['worker']:04d}.pt", found)
            state["worker"] += 1
            return result

        module.PolicyLoss.forward = given

    when_imported("openrlhf.trainer.ppo_utils.experience_maker", maker)
    when_imported("openrlhf.trainer.ray.ppo_actor", actor)
    when_imported("openrlhf.models.loss", loss)
