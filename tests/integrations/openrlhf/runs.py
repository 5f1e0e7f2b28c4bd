"""Real runs of OpenRLHF on a CPU, each in a process of its own; a finished one is not run again."""

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
LAB = Path(os.environ.get("KLMONITOR_OPENRLHF_LAB", ROOT / ".cache" / "openrlhf"))
LIMIT = 1500
"""Seconds that a run may take on a busy machine."""
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


@dataclass(frozen=True)
class Spec:
    """A run.

    Attributes:
        in_loss: the KL term is in the loss, else in the reward.
        ranks: data-parallel ranks.
        steps: of the trainer's count.
        watched: with klmonitor.
        fault: of `cpu/openrlhf_faults.py`; empty: none.
        resumes: the run whose checkpoints it goes on from; empty: none.
        more: further arguments.
    """

    in_loss: bool = False
    ranks: int = 1
    steps: int = 3
    watched: bool = True
    fault: str = ""
    resumes: str = ""
    more: tuple[str, ...] = field(default_factory=tuple)


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
        """Rows that its loggers were given: step and data."""
        path = self.folder / "rows.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def run_dir(self) -> Path:
        """Of the record."""
        return self.folder / "model" / "klmonitor"

    @property
    def said(self) -> list[str]:
        """Lines of ours in the log."""
        return [line for line in self.log.splitlines() if "klmonitor:" in line]


def source() -> str:
    """A digest of what a run depends on."""
    digest = hashlib.sha256()
    for folder in (ROOT / "klmonitor", ROOT / "integrations" / "klmonitor_openrlhf", HERE):
        for path in sorted(folder.rglob("*.py")):
            if not path.name.startswith("test_") and "static" not in path.parts:
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def run(name: str, lab: Path = LAB, again: bool = False) -> Done:
    """A run of `RUNS` by its name; taken from `lab` where it is there, of any source of ours.

    What a run of another source has left is used too unless KLMONITOR_OPENRLHF_FRESH is set: it is
    minutes that are saved, and the tests say what source they have seen.
    """
    spec, folder = RUNS[name], lab / "runs" / name
    if spec.resumes:
        run(spec.resumes, lab)
    done = folder / "done.json"
    wanted = {"spec": json.loads(json.dumps(asdict(spec))), "openrlhf": version("openrlhf")}
    if os.environ.get("KLMONITOR_OPENRLHF_FRESH"):
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
    if spec.resumes:  # the checkpoints, and the record that goes on
        for part in ("checkpoints", "model"):
            subprocess.run(
                ["cp", "-r", str(lab / "runs" / spec.resumes / part), folder], check=True
            )
    if not (lab / "tiny" / "config.json").exists():
        subprocess.run([sys.executable, HERE / "cpu" / "make_tiny.py", lab], check=True)
    ray = Path(f"/tmp/klm{os.getpid()}")  # a socket's path is short
    environ = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("KLMONITOR_", "RAY_"))},
        "PYTHONPATH": os.pathsep.join([str(HERE / "cpu"), os.environ.get("PYTHONPATH", "")]),
        "DS_ACCELERATOR": "cpu",
        "ON_CPU": "1",
        "ON_CPU_ORDER": "1",
        "ON_CPU_ROWS": str(folder / "rows.jsonl"),
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
        "HF_DATASETS_CACHE": str(lab / "datasets"),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    ray.mkdir(exist_ok=True)
    watched = "klmonitor_openrlhf" if spec.watched else "openrlhf.cli.train_ppo_ray"
    command = [
        *("timeout", "-k", "10", str(LIMIT), sys.executable, "-m", watched),
        *COMMON.split(),
        *("--actor.model_name_or_path", str(lab / "tiny")),
        *("--reward.remote_url", str(lab / "reward.py")),
        *("--data.prompt_dataset", str(lab / "prompts.jsonl")),
        *("--data.max_samples", str(PROMPTS * spec.steps), "--rollout.batch_size", str(PROMPTS)),
        *("--actor.num_gpus_per_node", str(spec.ranks), "--ref.num_gpus_per_node", str(spec.ranks)),
        *("--logger.tensorboard_dir", str(folder / "tensorboard")),
        *("--ckpt.output_dir", str(folder / "model"), "--ckpt.path", str(folder / "checkpoints")),
        *(IN_LOSS if spec.in_loss else ()),
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
        "openrlhf": version("openrlhf"),
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
