"""The other online trainers: each with its true pair, against TRL's own number."""

from __future__ import annotations

import importlib
import inspect
import math
import queue
import time
import types
from contextlib import suppress

import numpy as np
import pytest
import torch
from trl import RLOOConfig, RLOOTrainer

from klmonitor.attachment import attach
from klmonitor_trl.demo import tiny
from klmonitor_trl.names import GENERATE
from klmonitor_trl.packed import PackedCapture


def from_experimental(folder, *names):
    """Classes of `trl.experimental` (or, before it, of `trl`), or a skip."""
    for module in (f"trl.experimental.{folder}", "trl"):
        with suppress(ImportError, AttributeError, RuntimeError):
            found = importlib.import_module(module)
            return [getattr(found, name) for name in names]
    pytest.skip(f"{names[0]} cannot be imported from this TRL")


@pytest.fixture
def experimental(monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    return from_experimental


def test_gmpo(watch, formulas, experimental):
    trainer, config = experimental("gmpo", "GMPOTrainer", "GMPOConfig")
    options = {"beta": 0.04, "num_iterations": 2, "trainer_class": trainer, "config_class": config}
    run = watch(steps=4, **options)
    for step, row in run.rows.items():
        kl = formulas["trl_kl"](run.batches["train", step])
        assert kl == pytest.approx(row["kl"], rel=0, abs=1e-6 * max(row["kl"], 1e-2))
        assert set(run.reports["train", step].pairs) == {"policy_ref", "old_policy"}
    assert run.rows[4]["kl"] > 1e-4
    pair = run.reports["train", 4].pairs["old_policy"]
    d = run.log_ratios([4], q="old", p="policy")
    assert pair["clip/low"] == (d < -run.trainer.epsilon_low).double().mean().item()
    assert pair["clip/high"] == (d > run.trainer.epsilon_high).double().mean().item()


def attention(query, key, value, offsets_q, offsets_k, *_, softmax_scale, **__):
    """What TRL asks of a GPU kernel: causal attention of packed segments, aligned at their ends."""
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, 1) for tensor in (key, value))
    parts = []
    edges = zip(offsets_q[:-1], offsets_q[1:], offsets_k[:-1], offsets_k[1:], strict=True)
    for start, end, start_k, end_k in edges:
        q, k, v = query[start:end], key[start_k:end_k], value[start_k:end_k]
        seen = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
        scores = torch.einsum("qhd,khd->hqk", q, k) * softmax_scale
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        parts.append(torch.einsum("hqk,khd->qhd", weights, v))
    return torch.cat(parts)


class Samples:
    """A rollout worker and a weight transfer in one: completions drawn in advance."""

    def __init__(self, count, sample_class):
        self.rollout_buffer, self.metrics_queue = queue.Queue(), queue.Queue()
        generator = np.random.default_rng(0)
        for number in range(count):
            prompt = [2 + number // 4 % 9, 40, 41]
            length = int(generator.integers(4, 9))
            ids = np.array([*prompt, *generator.integers(2, 97, length)])
            mask = np.array([0] * len(prompt) + [1] * length)
            self.rollout_buffer.put(
                sample_class(
                    prompt=[],
                    completion=[],
                    input_ids=ids,
                    completion_mask=mask,
                    old_log_probs=-4.5 + 0.3 * generator.normal(size=len(ids)) * mask,
                    advantage=float(generator.normal()),
                    model_version=0,
                    group_id=number // 4,
                    metrics={"reward": 0.0},
                    enqueued_at=time.time(),
                )
            )

    def nothing(self, *args, **kwargs):
        pass

    start = stop = update_model_version = check_health = nothing
    init_weight_transfer = pause = send_weights = resume = destroy = nothing


def test_async_grpo(experimental, model_path, tmp_path, watched_class, monkeypatch):
    trainer_class, config_class = experimental("async_grpo", "AsyncGRPOTrainer", "AsyncGRPOConfig")
    if not PackedCapture.fits_class(trainer_class):
        with pytest.raises(TypeError, match="packs its batches without token_index"):
            attach(trainer_class.__new__(trainer_class))
        return
    packing = importlib.import_module("trl.experimental.async_grpo.packing")
    worker = importlib.import_module("trl.experimental.async_grpo.async_rollout_worker")
    kernel = types.SimpleNamespace(flash_attn_varlen_func=attention)
    monkeypatch.setattr(packing, "_flash_attn", lambda: kernel)
    module = importlib.import_module(trainer_class.__module__)
    monkeypatch.setattr(module, "get_peak_flops_per_device", lambda *_: None)  # asks a GPU
    samples = Samples(64, worker.RolloutSample)
    trainer = trainer_class(
        model=str(model_path),
        args=config_class(
            output_dir=str(tmp_path),
            max_steps=3,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=1,
            learning_rate=1e-2,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            token_budget=-1,
            max_staleness=100,
        ),
        train_dataset=tiny.prompts(16),
        rollout_worker=samples,
        weight_transfer=samples,
    )
    run = watched_class(trainer)
    trainer.train()
    assert run.handle.monitor.errors == 0
    assert len(run.rows) == 3
    for step, row in run.rows.items():
        assert set(run.reports["train", step].pairs) == {"rollout_policy"}
        pair = run.reports["train", step].pairs["rollout_policy"]
        assert pair.k3.mean == pytest.approx(row["kl"], abs=1e-6 * max(1, row["kl"]))
        assert pair["sequences"] == 8
        (batch,) = run.batches["train", step]
        d = (batch["policy"] - batch["rollout"]).double()
        low = (d < math.log(1 - trainer.epsilon_low)).double().mean().item()
        assert pair["clip/low"] == pytest.approx(low, abs=0.05)
        assert pair["clip/low"] > 0
    assert run.rows[1]["kl"] != run.rows[3]["kl"]


@pytest.fixture
def pairwise(model_path, tmp_path):
    """Trainers with the arguments of OnlineDPO."""
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    def make(trainer_class, config_class, reward_model=False, **config):
        tokenizer = AutoTokenizer.from_pretrained(model_path)
        accepted = inspect.signature(trainer_class).parameters
        reward = {"reward_funcs": tiny.letter_reward}
        if reward_model or "reward_funcs" not in accepted:
            model = AutoModelForSequenceClassification.from_pretrained(model_path, num_labels=1)
            plural = "reward_funcs" in accepted
            reward = {"reward_funcs" if plural else "reward_model": model}
            processing = "reward_processing_classes" if plural else "reward_processing_class"
            if processing in accepted:
                reward[processing] = tokenizer
        defaults = {
            "output_dir": str(tmp_path),
            "max_steps": 3,
            "per_device_train_batch_size": 8,
            "max_new_tokens": 16,
            "learning_rate": 3e-3,
            **tiny.ON_CPU,
        }
        return trainer_class(
            model=AutoModelForCausalLM.from_pretrained(model_path),
            args=config_class(**(defaults | config)),
            train_dataset=tiny.prompts(64),
            processing_class=tokenizer,
            **reward,
        )

    return make


def overheard(trainer, name):
    """What a method of the trainer returns from now on."""
    method, returned = getattr(trainer, name), []

    def keep(*args, **kwargs):
        returned.append(method(*args, **kwargs))
        return returned[-1]

    setattr(trainer, name, keep)
    return returned


def test_online_dpo(experimental, pairwise, watched_class):
    names = "OnlineDPOTrainer", "OnlineDPOConfig"
    run = watched_class(pairwise(*experimental("online_dpo", *names)))
    raw = overheard(run.trainer, "_forward")
    run.trainer.train()
    assert run.handle.monitor.errors == 0
    assert sorted(step for _, step in run.batches) == [1, 2, 3]
    padded, masked = [], []
    for row in run.trainer.state.log_history:
        if "objective/kl" not in row:
            continue
        step = row["step"]
        (batch,) = run.batches["train", step]
        policy, ref = (tensor.detach() for tensor in raw[2 * step - 2 : 2 * step])
        with_padding = (policy - ref).sum(1).mean().item()
        assert with_padding == pytest.approx(row["objective/kl"], abs=1e-5)
        difference = ((policy - ref).double() * batch["mask"]).sum(1).mean().item()
        pair = run.reports["train", step].pairs["policy_ref"]
        assert pair["sequence/k1"] == pytest.approx(difference, abs=1e-9)
        assert pair["on_policy"] == 1
        assert row["kl/policy_ref/k1/mean"] == pair.k1.mean
        padded.append(with_padding)
        masked.append(difference)
    assert len(padded) == 3
    assert abs(padded[2]) > 1e-3
    counts = [
        int(batch["mask"].sum()) for step in (1, 2, 3) for batch in run.batches["train", step]
    ]
    assert min(counts) < 16 * 16, "some completion must have ended early, or nothing is padded"
    assert padded != pytest.approx(masked, abs=1e-6)
    run.handle.detach()


def test_a_trainer_whose_log_probs_are_out_of_reach_is_refused_with_the_reason():
    class OnlineDPOTrainer:
        pass

    OnlineDPOTrainer.__module__ = "trl.experimental.online_dpo"
    trainer = OnlineDPOTrainer()
    with pytest.raises(TypeError, match="because it has neither _forward nor _compute_logprobs"):
        attach(trainer)


@pytest.mark.parametrize("kind", ["nash_md", "xpo"])
def test_nash_md_and_xpo(kind, experimental, pairwise, watched_class):
    prefix = {"nash_md": "NashMD", "xpo": "XPO"}[kind]
    classes = experimental(kind, f"{prefix}Trainer", f"{prefix}Config")
    run = watched_class(pairwise(*classes, reward_model=True))
    raw = overheard(run.trainer, "_compute_logprobs")
    run.trainer.train()
    assert run.handle.monitor.errors == 0
    key = "loss/kl" if kind == "nash_md" else "objective/kl"
    rows = [row for row in run.trainer.state.log_history if key in row]
    assert len(rows) == 3
    for row, given in zip(rows, raw, strict=True):
        pair = run.reports["train", row["step"]].pairs["policy_ref"]
        expected = (given[0].detach() - given[-1]).sum(1).mean().item()
        assert pair["sequence/k1"] == pytest.approx(expected, abs=1e-5)
        if kind == "nash_md":
            assert expected == pytest.approx(row[key], abs=1e-5)
        assert pair["on_policy"] == 1
    assert rows[2]["kl/policy_ref/k1/mean"] != 0


@pytest.fixture
def monolith(model_path, tmp_path):
    """What PPO and the first RLOO are made of: models, data, arguments."""
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
    )

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    dataset = tiny.prompts(64).map(
        lambda row: {"input_ids": tokenizer(row["prompt"])["input_ids"]}, remove_columns="prompt"
    )

    def config(config_class, **changes):
        return config_class(
            output_dir=str(tmp_path),
            per_device_train_batch_size=8,
            gradient_accumulation_steps=1,
            num_mini_batches=1,
            total_episodes=32,
            response_length=16,
            learning_rate=1e-2,
            stop_token="eos",
            num_sample_generations=0,
            report_to="none",
            use_cpu=True,
            bf16=False,
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            **changes,
        )

    def classifier():
        return AutoModelForSequenceClassification.from_pretrained(model_path, num_labels=1)

    data = {
        "processing_class": tokenizer,
        "train_dataset": dataset,
        "eval_dataset": dataset.select(range(8)),
        "data_collator": DataCollatorWithPadding(tokenizer),
    }
    return config, lambda: AutoModelForCausalLM.from_pretrained(model_path), classifier, data


def check_monolith(run, kl_coef):
    """Train, and compare with ``objective/kl``: sums of k1 over sequences."""
    run.trainer.train()
    assert run.handle.monitor.errors == 0
    rows = [row for row in run.trainer.state.log_history if "objective/kl" in row]
    assert len(rows) == 4
    largest = 0.0
    for row in rows:
        pair = run.reports["train", row["step"]].pairs["old_ref"]
        largest = max(largest, abs(pair["sequence/k1"] - row["objective/kl"]))
        assert pair["sequence/k1"] == pytest.approx(row["objective/kl"], abs=1e-5)
        assert row["kl/old_ref/k1/mean"] == pair.k1.mean
        assert pair["penalty/mean"] == pytest.approx(kl_coef * pair.k1.mean)
    assert abs(rows[3]["objective/kl"]) > 1e-3
    return largest


def test_ppo(experimental, monolith, watched_class):
    trainer_class, config_class = experimental("ppo", "PPOTrainer", "PPOConfig")
    config, model, classifier, data = monolith
    args = config(config_class)
    models = {
        "model": model(),
        "ref_model": model(),
        "reward_model": classifier(),
        "value_model": classifier(),
    }
    check_monolith(watched_class(trainer_class(args=args, **models, **data)), args.kl_coef)


@pytest.mark.skipif(hasattr(RLOOTrainer, GENERATE), reason="this RLOO is a GRPO trainer's sibling")
def test_the_first_rloo(monolith, watched_class, record_property):
    config, model, classifier, data = monolith
    args = config(RLOOConfig, rloo_k=2)
    trainer = RLOOTrainer(
        config=args, policy=model(), ref_policy=model(), reward_model=classifier(), **data
    )
    record_property("RLOO", check_monolith(watched_class(trainer), args.kl_coef))
