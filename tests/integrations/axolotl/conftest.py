"""axolotl's own command, on a tiny model; skipped where it is absent (make test-doors)."""

from __future__ import annotations

import importlib.util
import json
import os
import sys

import pytest

AXOLOTL = importlib.util.find_spec("axolotl") is not None
os.environ.setdefault("AXOLOTL_DO_NOT_TRACK", "1")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(__file__.rpartition("/")[0]):
            item.add_marker(pytest.mark.filterwarnings("ignore"))


TASK = """
def letters(prompts, completions, **kwargs):
    return [sum(letter in "aeiou" for letter in text) / 8 for text in completions]

def prompts(cfg, *args, **kwargs):
    return (lambda example, tokenizer=None: {"prompt": example["prompt"]}), {}
"""

TRUTH = '''
from axolotl.integrations.base import BasePlugin

RUNS = []


class Truth(BasePlugin):
    """Keeps what the trainer's own functions give and take; comes before klmonitor's plugin."""

    def post_trainer_create(self, cfg, trainer):
        steps, held = {}, {}
        score, loss = trainer._get_per_token_logps_and_entropies, trainer._compute_loss

        def scored(*args, **kwargs):
            found = score(*args, **kwargs)
            held["last"] = found[0].detach().clone()
            return found

        def lost(model, inputs):
            found = loss(model, inputs)
            row = {name: inputs[name].clone() for name in KEYS if inputs.get(name) is not None}
            row["policy"] = held["last"]
            steps.setdefault(trainer.state.global_step + 1, []).append(row)
            return found

        trainer._get_per_token_logps_and_entropies = scored
        trainer._compute_loss = lost
        RUNS.append((trainer, steps))


KEYS = ("ref_per_token_logps", "old_per_token_logps", "completion_mask")
'''


def _without_tiles(trainer_class):
    """axolotl 0.19.0 overrides a function of TRL's without an argument that TRL 1.9.0 gives it."""
    original = trainer_class._get_per_token_logps_and_entropies

    def scored(self, *args, num_tiles=None, **kwargs):
        return original(self, *args, **kwargs)

    trainer_class._get_per_token_logps_and_entropies = scored


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Train by a YAML: (trainer, what its functions gave, klmonitor's plugin or None)."""
    if not AXOLOTL:
        pytest.skip("axolotl is not installed here: make test-doors has an environment with it")
    from klmonitor_trl.demo import tiny

    place = tmp_path_factory.mktemp("axolotl")
    model = tiny.save_tiny_model(place / "model", vocab_size=128)  # axolotl adds a token
    rows = [{"prompt": text} for text in tiny.prompts(64)["prompt"]]
    (place / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (place / "klm_task.py").write_text(TASK)
    (place / "klm_truth.py").write_text(TRUTH)
    sys.path.insert(0, str(place))
    import klm_truth
    import yaml
    from axolotl.cli.args import TrainerCliArgs
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_preference_datasets
    from axolotl.core.trainers.grpo.async_trainer import AsyncGRPOTrainer
    from axolotl.integrations.base import PluginManager
    from axolotl.train import train

    _without_tiles(AsyncGRPOTrainer)

    def go(ours=True, trl=None, **more):
        out = tmp_path_factory.mktemp("out")
        manager = PluginManager.get_instance()
        manager.plugins.clear()
        table = {
            "base_model": str(model),
            "rl": "grpo",
            "plugins": [
                "klm_truth.Truth",
                *(["klmonitor_axolotl.KLMonitorPlugin"] if ours else []),
            ],
            "trl": {
                "beta": 0.04,
                "use_vllm": False,
                "num_generations": 8,
                "max_completion_length": 16,
                "reward_funcs": ["klm_task.letters"],
                **(trl or {}),
            },
            "datasets": [
                {"path": str(place / "data.jsonl"), "ds_type": "json", "type": "klm_task.prompts"}
            ],
            "dataset_prepared_path": str(out / "prepared"),
            "skip_prepare_dataset": True,
            "output_dir": str(out / "out"),
            "sequence_len": 64,
            "micro_batch_size": 16,
            "gradient_accumulation_steps": 1,
            "max_steps": 3,
            "learning_rate": 0.001,
            "optimizer": "adamw_torch",
            "lr_scheduler": "constant",
            "bf16": False,
            "logging_steps": 1,
            "save_strategy": "no",
            "save_first_step": False,
            "val_set_size": 0.0,
            "seed": 0,
            "special_tokens": {"pad_token": "<pad>"},
            **more,
        }
        (out / "run.yaml").write_text(yaml.safe_dump(table))
        cfg = load_cfg(str(out / "run.yaml"))
        data = load_preference_datasets(cfg=cfg, cli_args=TrainerCliArgs())
        train(cfg=cfg, dataset_meta=data)
        trainer, steps = klm_truth.RUNS.pop()
        return trainer, steps, manager.plugins.get("klmonitor_axolotl.KLMonitorPlugin")

    return go
