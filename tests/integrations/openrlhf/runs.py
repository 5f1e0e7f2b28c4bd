"""Real runs of OpenRLHF on a CPU (`tests.integrations.raylab.runs`)."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from tests.integrations.raylab.runs import RayRuns, RunSpec

PROMPTS = 8
"""In one step's batch."""
COMMON = """
--data.input_key input --data.label_key label --data.max_len 64 --rollout.max_new_tokens 24
--actor.num_nodes 1 --ref.num_nodes 1 --vllm.num_engines 1 --vllm.tensor_parallel_size 1
--vllm.sync_backend gloo --rollout.n_samples_per_prompt 4
--rollout.micro_batch_size 4 --train.batch_size 16 --train.micro_batch_size 4
--train.num_episodes 1 --train.max_epochs 1 --algo.advantage.estimator group_norm
--algo.kl.init_coef 0.001 --actor.adam.lr 1e-3 --ds.zero_stage 2 --ds.param_dtype bf16
--ds.attn_implementation sdpa
"""
IN_LOSS = ("--algo.kl.use_loss", "--algo.kl.estimator", "k3")
CORRECTED = ("--algo.advantage.is_correction_level", "token")
STOPS = (
    *("--klmonitor.rules", '{"limit": {"warn": 1e-12, "critical": 1e-11, "alone": 1e-11}}'),
    *("--klmonitor.on_alert", '["checkpoint", "stop"]'),
)


@dataclass(frozen=True, kw_only=True)
class Spec(RunSpec):
    """A run.

    Attributes:
        in_loss: the KL term is in the loss, else in the reward.
        resumes: the run whose checkpoints it goes on from; empty: none.
    """

    in_loss: bool = False
    resumes: str = ""


RUNS = {
    "reward": Spec(more=CORRECTED),
    "loss": Spec(in_loss=True, more=CORRECTED),
    "reward-plain": Spec(watched=False, more=CORRECTED),
    "loss-plain": Spec(in_loss=True, watched=False, more=CORRECTED),
    "reward-2ranks": Spec(ranks=2, more=CORRECTED),
    "loss-2ranks": Spec(in_loss=True, ranks=2, more=CORRECTED),
    "hooks-raise": Spec(in_loss=True, fault="hooks", more=CORRECTED),
    "worker-killed": Spec(in_loss=True, fault="worker"),
    "mailbox-killed": Spec(in_loss=True, fault="mailbox", more=CORRECTED),
    "stop": Spec(in_loss=True, steps=4, more=(*STOPS, "--ckpt.load_enable")),
    "resume": Spec(in_loss=True, steps=4, resumes="stop", more=("--ckpt.load_enable",)),
    "unbiased": Spec(in_loss=True, more=("--algo.kl.unbiased_gradient",)),
    "async-stop": Spec(
        in_loss=True,
        steps=6,
        more=(*STOPS[:2], "--klmonitor.on_alert=stop", "--train.async_enable"),
    ),
}


class OpenRlhfRuns(RayRuns):
    """OpenRLHF's."""

    trainer = "openrlhf"
    record = "model/klmonitor"
    limit = 1500

    def run(self, name):
        if self.specs[name].resumes:
            self.run(self.specs[name].resumes)
        return super().run(name)

    def prepare(self, spec, folder):
        for part in ("checkpoints", "model") if spec.resumes else ():  # and the record goes on
            kept = self.lab / "runs" / spec.resumes / part
            subprocess.run(["cp", "-r", str(kept), folder], check=True)

    def environ(self, spec, folder):
        return {
            "DS_ACCELERATOR": "cpu",
            "ON_CPU": "1",
            "ON_CPU_ROWS": str(folder / "rows.jsonl"),
            "HF_DATASETS_CACHE": str(self.lab / "datasets"),
        }

    def command(self, name, spec, folder):
        gpus, prompts = str(spec.ranks), str(PROMPTS * spec.steps)
        return [
            "klmonitor_openrlhf" if spec.watched else "openrlhf.cli.train_ppo_ray",
            *COMMON.split(),
            *("--actor.model_name_or_path", str(self.lab / "tiny")),
            *("--reward.remote_url", str(self.lab / "reward.py")),
            *("--data.prompt_dataset", str(self.lab / "prompts.jsonl")),
            *("--data.max_samples", prompts, "--rollout.batch_size", str(PROMPTS)),
            *("--actor.num_gpus_per_node", gpus, "--ref.num_gpus_per_node", gpus),
            *("--logger.tensorboard_dir", str(folder / "tensorboard")),
            *("--ckpt.output_dir", str(folder / "model")),
            *("--ckpt.path", str(folder / "checkpoints")),
            *(IN_LOSS if spec.in_loss else ()),
            *spec.more,
        ]


run = OpenRlhfRuns(RUNS).run
