"""Real runs of verl on a CPU (`tests.integrations.raylab.runs`)."""

from __future__ import annotations

from dataclasses import dataclass

from tests.integrations.raylab.runs import RayRuns, RunSpec

COMMON = """
trainer.device=cpu trainer.nnodes=1 trainer.logger=[console,tensorboard,file]
trainer.project_name=klmonitor trainer.val_before_train=False trainer.test_freq=-1
trainer.save_freq=-1 trainer.resume_mode=disable
data.train_batch_size=8 data.shuffle=False data.seed=7 data.max_prompt_length=32
data.max_response_length=24 data.dataloader_num_workers=0 data.filter_overlong_prompts=False
algorithm.adv_estimator=grpo
actor_rollout_ref.model.use_remove_padding=False
actor_rollout_ref.model.enable_gradient_checkpointing=False
+actor_rollout_ref.model.override_config.attn_implementation=sdpa
actor_rollout_ref.actor.strategy=fsdp2 actor_rollout_ref.ref.strategy=fsdp2
actor_rollout_ref.actor.use_torch_compile=False actor_rollout_ref.ref.use_torch_compile=False
actor_rollout_ref.actor.fsdp_config.use_torch_compile=False
actor_rollout_ref.ref.fsdp_config.use_torch_compile=False
+actor_rollout_ref.actor.fsdp_config.mixed_precision={param_dtype:fp32,reduce_dtype:fp32}
+actor_rollout_ref.ref.fsdp_config.mixed_precision={param_dtype:fp32,reduce_dtype:fp32}
actor_rollout_ref.actor.ppo_mini_batch_size=4
actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4
actor_rollout_ref.actor.use_kl_loss=True actor_rollout_ref.actor.kl_loss_coef=0.001
actor_rollout_ref.actor.kl_loss_type=low_var_kl actor_rollout_ref.actor.optim.lr=1e-3
actor_rollout_ref.rollout.name=stub actor_rollout_ref.rollout.mode=async
actor_rollout_ref.rollout.n=4 actor_rollout_ref.rollout.tensor_model_parallel_size=1
actor_rollout_ref.rollout.calculate_log_probs=True
actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8
actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=8
actor_rollout_ref.rollout.agent.num_workers=1
reward.custom_reward_function.name=compute_score reward.num_workers=1
ray_kwargs.ray_init.num_cpus=16 +ray_kwargs.ray_init.include_dashboard=False
transfer_queue.backend.SimpleStorage.num_data_storage_units=1
transfer_queue.backend.SimpleStorage.total_storage_size=10000
"""
REJECTION = (
    "algorithm.rollout_correction.rollout_is=token",
    "algorithm.rollout_correction.rollout_is_threshold=2.0",
    "algorithm.rollout_correction.rollout_rs=token_k1",
    "algorithm.rollout_correction.rollout_rs_threshold=0.98_1.02",
)
BYPASS = (
    "algorithm.rollout_correction.bypass_mode=True",
    "algorithm.rollout_correction.loss_type=ppo_clip",
)
STOP = (
    "+klmonitor.rules={limit:{warn:1e-12,critical:1e-11,alone:1e-11}}",
    "+klmonitor.on_alert=stop",
)
"""Any KL at all is critical, and ends the run."""


@dataclass(frozen=True, kw_only=True)
class Spec(RunSpec):
    """A run; `v1`: of the V1 trainer, else of V0."""

    v1: bool = True


RUNS = {
    "v1": Spec(),
    "v1-plain": Spec(watched=False),
    "v0": Spec(v1=False),
    "v0-plain": Spec(v1=False, watched=False),
    "v1-2ranks": Spec(ranks=2),
    "v0-2ranks": Spec(v1=False, ranks=2),
    "v1-rejection": Spec(more=REJECTION),
    "v0-rejection": Spec(v1=False, more=REJECTION),
    "v1-bypass": Spec(more=BYPASS),
    "v0-bypass": Spec(v1=False, more=BYPASS),
    "v1-hooks-raise": Spec(fault="hooks"),
    "v1-mailbox-killed": Spec(fault="mailbox"),
    "v1-worker-killed": Spec(fault="worker"),
    "v1-stop": Spec(steps=6, more=STOP),
    "v0-stop": Spec(v1=False, steps=6, more=STOP),
}


class VerlRuns(RayRuns):
    """verl's."""

    trainer = "verl"
    record = "checkpoints/klmonitor"
    limit = 1200

    def environ(self, spec, folder):
        return {
            "VERL_PLATFORM": "cpu",
            "VERL_USE_EXTERNAL_MODULES": "verl_on_cpu",
            "VERL_USE_EXTERNAL_PLUGINS": "auto" if spec.watched else "none",
            "VERL_FILE_LOGGER_PATH": str(folder / "rows.jsonl"),
            "TENSORBOARD_DIR": str(folder / "tensorboard"),
            "HYDRA_FULL_ERROR": "1",
            "VERL_ENGINE_DEVICE": "cuda",
        }

    def command(self, name, spec, folder):
        return [
            "verl.trainer.main_ppo",
            *COMMON.split(),
            f"trainer.use_v1={spec.v1}",
            f"trainer.n_gpus_per_node={spec.ranks}",
            f"+ray_kwargs.ray_init.num_gpus={spec.ranks}",
            f"trainer.total_training_steps={spec.steps}",
            f"trainer.experiment_name={name}",
            f"trainer.default_local_dir={folder / 'checkpoints'}",
            f"data.train_files={self.lab / 'train.parquet'}",
            f"data.val_files={self.lab / 'val.parquet'}",
            f"actor_rollout_ref.model.path={self.lab / 'tiny'}",
            f"reward.custom_reward_function.path={self.lab / 'reward.py'}",
            *spec.more,
        ]


run = VerlRuns(RUNS).run
