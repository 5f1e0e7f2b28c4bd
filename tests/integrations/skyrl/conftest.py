"""SkyRL's own trainer and loop on a CPU; skipped where it is absent (make test-doors).

Its workers need GPUs: `LocalDispatch` stands for them, with a tiny model in this process. On Python
3.11 Pydantic wants ``typing_extensions.TypedDict``, so SkyRL is imported with that one.
"""

from __future__ import annotations

import asyncio
import copy
import importlib.util
import typing
from types import SimpleNamespace

import pytest
import torch

SKYRL = importlib.util.find_spec("skyrl") is not None


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(__file__.rpartition("/")[0]):
            item.add_marker(pytest.mark.filterwarnings("ignore"))


def scored(model, sequences, mask, length):
    """Log-probs of the last tokens of rows, [B, length], in float32."""
    places = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(sequences, attention_mask=mask, position_ids=places).logits[:, -length - 1 : -1]
    return logits.float().log_softmax(-1).gather(-1, sequences[:, -length:, None])[..., 0]


class LocalDispatch:
    """What `WorkerDispatch` does with Ray's workers, done here."""

    def __init__(self, model, rate=1e-3):
        self.models = {"policy": model, "ref": copy.deepcopy(model)}
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=rate)

    def get_lcm_dp_size(self):
        return 1

    def forward(self, name, data):
        length = data.metadata["response_length"]
        with torch.no_grad():
            found = scored(self.models[name], data["sequences"], data["attention_mask"], length)
        return SimpleNamespace(loss_fn_outputs=[{"logprobs": row} for row in found.tolist()])

    def stage_data(self, name, data, boundaries):
        return [data]

    def forward_from_staged(self, name, data):
        return self.forward(name, data)

    def forward_backward_from_staged(self, name, data):
        mask = data["loss_mask"]
        policy = scored(self.models[name], data["sequences"], data["attention_mask"], mask.shape[1])
        ratio = (policy - data["action_log_probs"]).exp()
        loss = -(ratio * data["advantages"] * mask).sum() / mask.sum()
        loss.backward()
        return SimpleNamespace(metrics={"policy_loss": loss.item()})

    def optim_step(self, name):
        self.optimizer.step()
        self.optimizer.zero_grad()
        return 1.0

    async def save_weights_for_sampler(self):
        """The sampler shares the weights."""

    def save_checkpoint(self, name, folder, tokenizer):
        torch.save(self.models[name].state_dict(), f"{folder}.pt")

    def load_checkpoint(self, name, folder, **what):
        self.models[name].load_state_dict(torch.load(f"{folder}.pt"))

    def get_node_ids(self):
        return []

    def __getattr__(self, name):
        if name in ("init_weight_sync_state", "empty_cache", "mark_all_offloaded"):
            return lambda *args, **kwargs: None
        raise AttributeError(name)


class Sampler:
    """A generator of SkyRL's kind: the tiny model, with noise where an engine differs."""

    def __init__(self, dispatch, tokenizer, noise=0.02):
        self.dispatch, self.tokenizer, self.noise = dispatch, tokenizer, noise

    async def generate(self, batch):
        model = self.dispatch.models["policy"]
        prompts = [self.tokenizer(text)["input_ids"] for text in batch["prompts"]]
        out = {"prompt_token_ids": prompts, "response_ids": [], "rollout_logprobs": []}
        for prompt in prompts:
            ids, kept = list(prompt), []
            for _ in range(int(torch.randint(4, 12, ()))):
                with torch.no_grad():
                    logits = model(torch.tensor([ids])).logits[0, -1].float()
                logits = logits + self.noise * torch.randn_like(logits)
                token = int(torch.multinomial(logits.softmax(-1), 1))
                kept.append(float(logits.log_softmax(-1)[token]))
                ids.append(token)
            out["response_ids"].append(ids[len(prompt) :])
            out["rollout_logprobs"].append(kept)
        texts = [self.tokenizer.decode(ids) for ids in out["response_ids"]]
        masks = [[1] * len(ids) for ids in out["response_ids"]]
        for mask in masks:
            mask[1] = 0  # as a token of a tool's
        return out | {
            "rewards": [text.count("a") / 8 for text in texts],
            "loss_masks": masks,
            "stop_reasons": ["stop"] * len(texts),
            "rollout_metrics": None,
        }


class Prompts(torch.utils.data.Dataset):
    def __init__(self, texts):
        self.texts = texts

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        return self.texts[index], str(index)

    def collate_fn(self, rows):
        return [
            {"prompt": text, "env_class": None, "env_extras": {}, "uid": uid} for text, uid in rows
        ]


class Tracker:
    """Keeps what the trainer logs."""

    def __init__(self):
        self.rows = {}

    def log(self, data, step, commit=False):
        self.rows[step] = dict(data)

    def finish(self):
        """Nothing is held."""


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    if not SKYRL:
        pytest.skip("SkyRL is not installed here: make test-doors has an environment with it")
    import typing_extensions

    typing.TypedDict = typing_extensions.TypedDict
    from klmonitor_trl.demo import tiny

    return tiny.save_tiny_model(tmp_path_factory.mktemp("skyrl") / "model")


@pytest.fixture
def build(place, tmp_path_factory):
    """A `RayPPOTrainer` of the tiny model, not started."""
    import skyrl.train.trainer as module
    from skyrl.train.config import SkyRLTrainConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from klmonitor_trl.demo import tiny

    def make(callbacks=(), folder=None, steps=3, noise=0.02, **algorithm):
        torch.manual_seed(0)
        out = folder or tmp_path_factory.mktemp("out")
        cfg = SkyRLTrainConfig()
        cfg.trainer.placement.colocate_all = False
        cfg.trainer.epochs = 100
        cfg.trainer.train_batch_size = cfg.trainer.policy_mini_batch_size = 4
        cfg.generator.n_samples_per_prompt = 4
        cfg.generator.sampling_params.logprobs = 1
        cfg.trainer.max_training_steps = steps
        cfg.trainer.eval_interval = -1
        cfg.trainer.ckpt_interval = cfg.trainer.hf_save_interval = -1
        cfg.trainer.print_example_interval = -1
        cfg.trainer.enable_ray_gpu_monitor = False
        cfg.generator.inference_engine.enable_ray_prometheus_stats = False
        cfg.trainer.resume_mode = "none"
        cfg.trainer.export_path = str(out / "exports")
        cfg.trainer.ckpt_path = str(out / "ckpts")
        cfg.data.dataloader.num_workers = 0
        cfg.data.dataloader.persistent_workers = False
        for name, value in algorithm.items():
            owner = cfg.trainer if hasattr(cfg.trainer, name) else cfg.trainer.algorithm
            setattr(owner, name, value)
        model = AutoModelForCausalLM.from_pretrained(place).eval()
        tokenizer = AutoTokenizer.from_pretrained(place)
        dispatch = LocalDispatch(model)
        trainer = module.RayPPOTrainer(
            cfg=cfg,
            tracker=Tracker(),
            tokenizer=tokenizer,
            train_dataset=Prompts(tiny.prompts(64)["prompt"]),
            inference_engine_client=None,
            generator=Sampler(dispatch, tokenizer, noise),
            callbacks=list(callbacks),
        )
        trainer.dispatch = dispatch
        trainer.ref_model = object() if cfg.trainer.algorithm.use_kl_loss else None
        return trainer

    return make


@pytest.fixture
def train():
    """Run the trainer's own loop; (its rows by step, its batches by step)."""

    def go(trainer):
        batches = {}
        original = trainer.train_critic_and_policy

        def kept(data):
            status = original(data)
            batches[trainer.global_step] = {
                key: data[key].clone() for key in data if torch.is_tensor(data[key])
            }
            return status

        trainer.train_critic_and_policy = kept
        torch.manual_seed(0)
        asyncio.run(trainer.train())
        return trainer.tracker.rows, batches

    return go
