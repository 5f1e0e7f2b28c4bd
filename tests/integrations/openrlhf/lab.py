"""A run of OpenRLHF whose pieces are called one by one: its own code, no Ray, no model."""

from __future__ import annotations

import inspect
import itertools
from types import SimpleNamespace

import torch

PROMPT, LENGTH, SAMPLES = 4, 24, 4
NESTED = {
    "algo.kl.init_coef": 0.05,
    "algo.kl.target": None,
    "algo.kl.horizon": 10000,
    "algo.kl.use_loss": False,
    "algo.kl.estimator": "k1",
    "algo.advantage.estimator": "group_norm",
    "algo.advantage.gamma": 1.0,
    "algo.advantage.is_correction_level": "token",
    "algo.advantage.is_correction_enable": True,
    "actor.eps_clip_low_high": (0.2, 0.28),
    "actor.dual_clip": None,
    "actor.policy_loss_type": "ppo",
    "reward.clip_range": (-10, 10),
    "reward.overlong_buffer_len": None,
    "reward.stop_properly_penalty_coef": None,
    "rollout.n_samples_per_prompt": SAMPLES,
    "rollout.batch_size": 3,
    "rollout.micro_batch_size": 4,
    "train.batch_size": 12,
    "train.max_epochs": 1,
    "train.dynamic_batch_enable": False,
    "train.colocate_all": False,
    "train.colocate_actor_ref": False,
    "train.colocate_critic_reward": False,
    "critic.freezing_steps": -1,
    "ds.ring_attn_size": 1,
    "ds.tensor_parallel_size": 1,
    "ckpt.save_steps": 10**9,
    "ckpt.output_dir": "model",
    "ckpt.path": "checkpoints",
    "ckpt.load_enable": False,
    "ckpt.best_metric_key": "",
    "logger.logging_steps": 1,
    "logger.wandb.key": None,
    "logger.wandb.run_name": "lab",
    "logger.tensorboard_dir": None,
    "vllm.enable_sleep": False,
}
FLAT = {
    "algo.kl.init_coef": "init_kl_coef",
    "algo.kl.target": "kl_target",
    "algo.kl.horizon": "kl_horizon",
    "algo.kl.use_loss": "use_kl_loss",
    "algo.kl.estimator": "kl_estimator",
    "algo.advantage.estimator": "advantage_estimator",
    "algo.advantage.is_correction_enable": "enable_vllm_is_correction",
    "reward.clip_range": "reward_clip_range",
    "rollout.batch_size": "rollout_batch_size",
    "rollout.micro_batch_size": "micro_rollout_batch_size",
    "train.batch_size": "train_batch_size",
    "train.dynamic_batch_enable": "use_dynamic_batch",
    "train.colocate_all": "colocate_all_models",
    "train.colocate_actor_ref": "colocate_actor_ref",
    "train.colocate_critic_reward": "colocate_critic_reward",
    "critic.freezing_steps": "freezing_actor_steps",
    "ds.tensor_parallel_size": "ds_tensor_parallel_size",
    "ckpt.output_dir": "save_path",
    "ckpt.path": "ckpt_path",
    "ckpt.load_enable": "load_checkpoint",
    "logger.wandb.key": "use_wandb",
    "logger.wandb.run_name": "wandb_run_name",
    "logger.tensorboard_dir": "use_tensorboard",
    "vllm.enable_sleep": "vllm_enable_sleep",
}
"""0.9's names, where they are not the last part of the newer one."""


def arguments(openrlhf_version, **given):
    """As the trainer of a version holds them: ``algo__kl__use_loss=True`` is of both."""
    values = {**NESTED, **{name.replace("__", "."): x for name, x in given.items()}}
    if openrlhf_version.startswith("0.9."):
        return SimpleNamespace(**{FLAT.get(k, k.rpartition(".")[2]): v for k, v in values.items()})
    if openrlhf_version.startswith(("0.10.", "0.11.0")):
        values.pop("algo.advantage.is_correction_level")
    else:
        values.pop("algo.advantage.is_correction_enable")
    from openrlhf.utils.config import hierarchize

    return hierarchize(SimpleNamespace(**values))


class Group:
    """A group of model actors, without Ray: what is asked of it is answered at once."""

    def __init__(self, forward=None):
        self.forward, self.calls = forward, []

    def async_run_method_batch(self, method_name, **given):
        if method_name == "forward":
            pairs = zip(given["sequences"], given["action_mask"], strict=True)
            return [[self.forward(ids, mask) for ids, mask in pairs]]
        self.calls.append((method_name, given))
        return []

    def async_run_method(self, method_name, **given):
        self.calls.append((method_name, given))
        return [getattr(self, "states", None)]


class Policies:
    """Log-probs of sequences under every policy: the same for the same tokens."""

    def __init__(self):
        self.scale = {"ref": 0.3, "policy": 0.05}

    def of(self, name, ids, mask):
        """[B, A], as OpenRLHF's models give them: zeros where nothing was sampled."""
        found = torch.stack([self.row(name, row) for row in ids])
        return found[:, -mask.shape[1] :] * mask.float()

    def row(self, name, row):
        generator = torch.Generator().manual_seed(int(row.sum()) * 1000 + int(row[0]))
        shape = (1, len(row) - 1)
        old = -3 * torch.rand(shape, generator=generator)[0] - 0.01
        if name == "old":
            return old
        seed = {"rollout": 1, "policy": 2, "ref": 3}[name]
        generator.manual_seed(int(row.sum()) * 7 + seed)
        noise = self.scale.get(name, 0.02) * torch.randn(shape, generator=generator)[0]
        return (old + noise).clamp(max=-1e-4)


class Tokenizer:
    """Decodes."""

    pad_token_id = 0

    def decode(self, ids, **kwargs):
        return "".join(chr(97 + int(i) % 26) for i in torch.as_tensor(ids).flatten())


class Lab:
    """One process that is driver and worker; every other is a method's argument."""

    def __init__(self, openrlhf, tmp_path, monkeypatch, **given):
        from openrlhf.trainer import ppo_trainer
        from openrlhf.trainer.ppo_utils import experience_maker

        from klmonitor_openrlhf.plugin import PROCESS
        from tests.helpers.mailbox import LocalMailbox

        ray = SimpleNamespace(put=lambda x: x, get=lambda x, **k: x)
        monkeypatch.setattr(experience_maker, "ray", ray)
        monkeypatch.setattr(ppo_trainer, "ray", ray)
        monkeypatch.setattr("klmonitor.hooks.remote.Mailbox", LocalMailbox)
        monkeypatch.setattr("klmonitor.hooks.worker.Mailbox", LocalMailbox)
        monkeypatch.setattr("klmonitor.hooks.mailbox.Mailbox", LocalMailbox)
        LocalMailbox.box = None
        PROCESS.driver = PROCESS._worker = PROCESS._box = None
        self.process, self.module = PROCESS, ppo_trainer
        self.args = arguments(
            openrlhf.__version__,
            ckpt__output_dir=str(tmp_path / "model"),
            logger__tensorboard_dir=str(tmp_path / "tensorboard"),
            **given,
        )
        self.run_dir = tmp_path / "model" / "klmonitor"
        self.policies = Policies()
        self.actor = Group(lambda ids, mask: self.policies.of("old", ids, mask))
        self.ref = Group(lambda ids, mask: self.policies.of("ref", ids, mask))
        self.experiences = []
        self.trainer = None

    def begin(self):
        """OpenRLHF's trainer is made."""
        strategy = SimpleNamespace(args=self.args)
        reference = self.ref if self._beta() > 0 else None
        self.trainer = self.module.BasePPOTrainer(
            strategy, self.actor, None, None, reference, None, Tokenizer()
        )
        return self.process.driver

    def _beta(self):
        from klmonitor_openrlhf.settings import at

        return float(at(self.args, "beta"))

    @property
    def driver(self):
        return self.process.driver

    def samples(self, seed=0, prompts=3, count=SAMPLES):
        """Single samples, made of an engine's answers by OpenRLHF's own code."""
        from openrlhf.trainer.ppo_utils import samples_generator

        owner = samples_generator.SamplesGenerator
        generator = torch.Generator().manual_seed(seed)
        found = []
        for prompt, _ in itertools.product(range(prompts), range(count)):
            head = [10 + prompt, 20 + seed % 7, 30]
            size = int(torch.randint(1, LENGTH, (1,), generator=generator))
            tail = torch.randint(40, 200, (size,), generator=generator).tolist()
            ids = [*head, *tail]
            turns = [(len(head), len(ids))]
            if size > 6:  # an answer of the environment's between two turns
                turns = [(len(head), len(head) + 3), (len(head) + 5, len(ids))]
            scores = [0.0, *self.policies.row("rollout", torch.tensor(ids)).tolist()]
            answer = {
                "observation_tokens": ids,
                "action_ranges": turns,
                "rollout_log_probs": scores,
                "reward": float(torch.rand(1, generator=generator)),
                "scores": 0.5,
                "prompt": f"prompt {prompt}",
                "label": "x",
                "extra_logs": {},
            }
            make = owner._process_response_into_experience
            found.append(make(SimpleNamespace(args=self.args), answer, max_len=64))
        return found

    def make(self, samples):
        """OpenRLHF's own way from samples to experiences."""
        self.experiences = self.trainer.experience_maker.make_experience_batch(samples)
        return self.experiences

    def update(self, rank=0, ranks=1, share=slice(None), fail=False):
        """OpenRLHF's replay buffer and policy loss on micro-batches, in an update of a worker."""
        import copy

        from openrlhf.models import PolicyLoss
        from openrlhf.trainer.ppo_utils.replay_buffer import NaiveReplayBuffer

        buffer = NaiveReplayBuffer.__new__(NaiveReplayBuffer)
        vars(buffer).update(
            cpu_offload=True, limit=0, items=[], packing_samples=False, dynamic_batch=False
        )
        for one in copy.deepcopy(self.experiences)[share]:
            buffer.append(one)
        seen, loss = [], PolicyLoss()

        def micro_batch(owner, experience, kl_ctl, step):
            policy = self.policies.of("policy", experience.sequences, experience.action_mask)
            rollout = experience.rollout_log_probs
            given = (policy.requires_grad_(), experience.action_log_probs, experience.advantages)
            loss(*given, action_mask=experience.action_mask, rollout_log_probs=rollout)
            seen.append((policy.detach(), experience))

        def work(owner, kl_ctl):
            for at in range(0, len(buffer.items), 3):
                experience = buffer.collate_fn(buffer.items[at : at + 3])
                worker.micro_batch(micro_batch, owner, experience, kl_ctl, at)
            if fail:
                raise RuntimeError("the update failed")
            return {}

        worker = self.process.worker
        owner = SimpleNamespace(args=self.args, place=(rank, ranks, True))
        worker.update(work, owner, 0.05)
        return seen

    def log(self, step, **status):
        """OpenRLHF's end of a step; the report of it."""
        self.trainer.save_logs_and_checkpoints(step, {"actor_lr": 1e-6, **status}, {"episode": 0})
        return self.driver.report if self.driver else None

    def step(self, number, seed=None):
        """All of a step; its report, and what the workers have seen."""
        self.make(self.samples(number if seed is None else seed))
        seen = self.update()
        return self.log(number), seen

    def end(self):
        """OpenRLHF closes its loggers."""
        self.trainer.tensorboard_logger.close()

    def rows(self):
        """What its TensorBoard logger has written, by tag."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        found = {}
        for path in self.run_dir.parents[1].glob("tensorboard/**/events*"):
            events = EventAccumulator(str(path)).Reload()
            for tag in events.Tags()["scalars"]:
                found[tag] = {one.step: one.value for one in events.Scalars(tag)}
        return found


def results(openrlhf):
    """Values that a policy loss of this version gives."""
    from openrlhf.models.loss import PolicyLoss

    text = inspect.getsource(inspect.unwrap(PolicyLoss.forward))
    return text.rstrip().rpartition("return")[2].count(",") + 1
