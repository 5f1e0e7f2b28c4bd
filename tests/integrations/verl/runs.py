"""Real runs of verl on a CPU, each in a process of its own; a finished one is not run again."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
LAB = Path(os.environ.get("KLMONITOR_VERL_LAB", ROOT / ".cache" / "verl"))
LIMIT = 1200
"""Seconds that a run may take on a busy machine."""
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


@dataclass(frozen=True)
class Spec:
    """A run.

    Attributes:
        v1: the V1 trainer, else V0.
        ranks: data-parallel ranks.
        steps: optimizer steps of the trainer's count.
        watched: with klmonitor.
        fault: of `cpu/verl_faults.py`; empty: none.
        more: overrides of verl's configuration.
    """

    v1: bool = True
    ranks: int = 1
    steps: int = 3
    watched: bool = True
    fault: str = ""
    more: tuple[str, ...] = field(default_factory=tuple)


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


@dataclass(frozen=True)
class Done:
    """What is left of a run.

    Attributes:
        folder: of everything it wrote.
        rc: its exit status.
        log: what it printed.
    """

    folder: Path
    rc: int
    log: str

    @property
    def rows(self) -> list[dict]:
        """Rows of verl's own file logger: step and data."""
        path = self.folder / "rows.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def said(self) -> list[str]:
        """Lines of ours in the log."""
        return [line for line in self.log.splitlines() if "klmonitor:" in line]


def source() -> str:
    """A digest of what a run depends on."""
    digest = hashlib.sha256()
    for folder in (ROOT / "klmonitor", ROOT / "integrations" / "klmonitor_verl", HERE):
        for path in sorted(folder.rglob("*.py")):
            if not path.name.startswith("test_") and "static" not in path.parts:
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def run(name: str, lab: Path = LAB, again: bool = False) -> Done:
    """A run of `RUNS` by its name; taken from `lab` where it is there, of any source of ours.

    What a run of another source has left is used too unless KLMONITOR_VERL_FRESH is set: it is
    minutes that are saved, and the tests say what source they have seen.
    """
    spec, folder = RUNS[name], lab / "runs" / name
    done = folder / "done.json"
    wanted = {"spec": json.loads(json.dumps(asdict(spec))), "verl": version("verl")}
    if os.environ.get("KLMONITOR_VERL_FRESH"):
        wanted["source"] = source()
    if done.exists() and not again:
        kept = json.loads(done.read_text())
        fine = kept["rc"] == 0 or spec.fault == "worker"
        if fine and all(kept.get(key) == value for key, value in wanted.items()):
            return Done(folder, kept["rc"], (folder / "log").read_text())
    return _run(name, spec, folder, lab)


def _run(name: str, spec: Spec, folder: Path, lab: Path) -> Done:
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    folder.mkdir(parents=True)
    if not (lab / "tiny" / "config.json").exists():
        subprocess.run([sys.executable, HERE / "cpu" / "make_tiny.py", lab], check=True)
    ray = Path(f"/tmp/klm{os.getpid()}")  # a socket's path is short
    environ = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("KLMONITOR_", "RAY_"))},
        "PYTHONPATH": f"{HERE / 'cpu'}",
        "VERL_PLATFORM": "cpu",
        "VERL_USE_EXTERNAL_MODULES": "verl_on_cpu",
        "VERL_USE_EXTERNAL_PLUGINS": "auto" if spec.watched else "none",
        "VERL_FILE_LOGGER_PATH": str(folder / "rows.jsonl"),
        "TENSORBOARD_DIR": str(folder / "tensorboard"),
        "ON_CPU_ORDER": "1",
        "ON_CPU_DUMP": str(folder / "dump") if spec.watched else "",
        "ON_CPU_FAULT": spec.fault,
        "STUB_NOISE": "0.02",
        "STUB_HASHES": str(folder / "weights"),
        "KLMONITOR_CACHE_DIR": str(lab / "kernels"),
        "RAY_TMPDIR": str(ray),
        "RAY_DEDUP_LOGS": "0",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "HYDRA_FULL_ERROR": "1",
        "VERL_ENGINE_DEVICE": "cuda",
    }
    ray.mkdir(exist_ok=True)
    command = [
        *("timeout", "-k", "10", str(LIMIT), sys.executable, "-m", "verl.trainer.main_ppo"),
        *COMMON.split(),
        f"trainer.use_v1={spec.v1}",
        f"trainer.n_gpus_per_node={spec.ranks}",
        f"+ray_kwargs.ray_init.num_gpus={spec.ranks}",
        f"trainer.total_training_steps={spec.steps}",
        f"trainer.experiment_name={name}",
        f"trainer.default_local_dir={folder / 'checkpoints'}",
        f"data.train_files={lab / 'train.parquet'}",
        f"data.val_files={lab / 'val.parquet'}",
        f"actor_rollout_ref.model.path={lab / 'tiny'}",
        f"reward.custom_reward_function.path={lab / 'reward.py'}",
        *spec.more,
    ]
    started = time.time()
    with (folder / "log").open("w") as log:
        rc = subprocess.run(
            command, env=environ, cwd=folder, stdout=log, stderr=subprocess.STDOUT, check=False
        ).returncode
    subprocess.run(["rm", "-rf", str(ray)], check=False)
    body = {
        "spec": asdict(spec),
        "verl": version("verl"),
        "source": source(),
        "rc": rc,
        "seconds": round(time.time() - started),
    }
    (folder / "done.json").write_text(json.dumps(body))
    return Done(folder, rc, (folder / "log").read_text())


if __name__ == "__main__":
    for wanted in sys.argv[1:] or RUNS:
        begun = time.time()
        found = run(wanted, again="--again" in os.environ.get("RUNS_ARGS", ""))
        print(wanted, "rc", found.rc, "in", round(time.time() - begun), "s", flush=True)
        for line in found.said[:12]:
            print("   ", line[:300], flush=True)
