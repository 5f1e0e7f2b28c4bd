"""ms-swift's own command on a tiny model; skipped where it is absent (make test-doors)."""

from __future__ import annotations

import importlib.util
import json
import os

import pytest

SWIFT = (
    importlib.util.find_spec("swift") is not None and importlib.util.find_spec("trl") is not None
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")

PLUGIN = """
from swift.rewards import ORM, orms

class Letters(ORM):
    def __call__(self, completions, **kwargs):
        return [text.count("a") / 8 for text in completions]

orms["letters"] = Letters
"""


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(__file__.rpartition("/")[0]):
            item.add_marker(pytest.mark.filterwarnings("ignore"))


class Truth:
    """Keeps what the trainer's own functions give and take, below klmonitor's hooks."""

    def __init__(self, monkeypatch):
        from swift.rlhf_trainers import GRPOTrainer

        self.steps = {}
        self.trainer = None
        score, loss = (
            GRPOTrainer._get_per_token_logps_and_entropies,
            GRPOTrainer._compute_loss_and_metrics,
        )
        held = {}

        def scored(trainer, *args, **kwargs):
            found = score(trainer, *args, **kwargs)
            held["last"] = found[0].detach().clone()
            return found

        def lost(trainer, model, inputs, batch):
            found = loss(trainer, model, inputs, batch)
            self.trainer = trainer
            row = {
                "policy": held["last"],
                "old": batch.old_per_token_logps,
                "ref": batch.ref_per_token_logps,
                "rollout": batch.rollout_per_token_logps,
                "mask": batch.completion_mask.clone(),
                "ids": inputs["input_ids"].clone(),
            }
            self.steps.setdefault(trainer.state.global_step + 1, []).append(row)
            return found

        monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", scored)
        monkeypatch.setattr(GRPOTrainer, "_compute_loss_and_metrics", lost)


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    if not SWIFT:
        pytest.skip("ms-swift is not installed here: make test-doors has an environment with it")
    from klmonitor_trl.demo import tiny

    folder = tmp_path_factory.mktemp("swift")
    tiny.save_tiny_model(folder / "model", max_position_embeddings=512)
    rows = [
        {"messages": [{"role": "user", "content": text}]} for text in tiny.prompts(64)["prompt"]
    ]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "task.py").write_text(PLUGIN)
    (folder / "plugin.py").write_text("import klmonitor_swift\n")
    return folder


@pytest.fixture
def run(place, tmp_path_factory, monkeypatch):
    """``swift rlhf --rlhf_type grpo``: (trainer, what its functions gave)."""
    from swift.arguments import RLHFArguments
    from swift.pipelines import rlhf_main

    def go(ours=True, environ=None, **more):
        for name, value in (environ or {}).items():
            monkeypatch.setenv(name, value)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "environ", os.environ)  # ms-swift puts a copy in its place
            truth = Truth(patch)
            table = {
                "rlhf_type": "grpo",
                "model": str(place / "model"),
                "model_type": "qwen2",
                "template": "default",
                "tuner_type": "full",
                "torch_dtype": "float32",
                "attn_impl": "sdpa",
                "dataset": [str(place / "data.jsonl")],
                "external_plugins": [
                    str(place / "task.py"),
                    *([str(place / "plugin.py")] if ours else []),
                ],
                "callbacks": ["klmonitor"] if ours else [],
                "reward_funcs": ["letters"],
                "beta": 0.04,
                "num_generations": 8,
                "max_completion_length": 16,
                "max_length": 256,
                "per_device_train_batch_size": 16,
                "gradient_accumulation_steps": 1,
                "max_steps": 3,
                "learning_rate": 1e-3,
                "lr_scheduler_type": "constant",
                "warmup_ratio": 0.0,
                "logging_steps": 1,
                "save_strategy": "no",
                "eval_strategy": "no",
                "split_dataset_ratio": 0.0,
                "report_to": ["none"],
                "output_dir": str(tmp_path_factory.mktemp("out")),
                "add_version": False,
                "gradient_checkpointing": False,
                "use_hf": True,
                "seed": 0,
                "dataloader_num_workers": 0,
                "dataset_num_proc": 1,
                "check_model": False,
                **more,
            }
            rlhf_main(RLHFArguments(**table))
        return truth.trainer, truth.steps

    return go
