"""A language model of 80k parameters with a character tokenizer, and a GRPO trainer for it.

Everything is built on the spot: random weights, a vocabulary of the 95 printable ASCII
characters, prompts from a list of words, and a reward that counts one letter. A step takes tens
of milliseconds on a CPU, and yet it is TRL's own trainer that takes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

LETTER = "a"
"""The letter that the toy reward counts."""
ON_CPU: dict[str, Any] = {
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "seed": 0,
}
"""A trainer's options for some quick steps that leave nothing behind."""

_OPENINGS = ("once", "in the beginning", "she said", "at night", "to whom", "we", "now", "so")
_SUBJECTS = ("the fox", "a monitor", "my run", "the rain", "it", "an old song", "nobody", "he")


def letter_reward(completions: list[str], **_: Any) -> list[float]:
    """Count `LETTER` in each completion and divide by 8."""
    return [text.count(LETTER) / 8 for text in completions]


def build_tokenizer() -> Any:
    """A tokenizer whose tokens are the 95 printable ASCII characters, and padding and end.

    Returns:
        A `transformers.PreTrainedTokenizerFast` of 97 tokens.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<end>", *(chr(code) for code in range(32, 127))]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def save_tiny_model(path: str | Path, seed: int = 0, **config: Any) -> Path:
    """Write a tiny Qwen2 model with random weights, and its tokenizer.

    Args:
        path: directory to write to; TRL loads the reference model from it again.
        seed: seed of the weights; the global generator is left as it was.
        config: values of `transformers.Qwen2Config` that replace the tiny ones.

    Returns:
        `path`.
    """
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = build_tokenizer()
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.05,
        "tie_word_embeddings": False,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(Qwen2Config(**(sizes | config)))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return Path(path)


def prompts(rows: int) -> Any:
    """A data set of short prompts of different lengths; the first 64 are different.

    Returns:
        A `datasets.Dataset` with the column ``prompt``.
    """
    from datasets import Dataset

    texts = [f"{opening} {subject}" for opening in _OPENINGS for subject in _SUBJECTS]
    return Dataset.from_dict({"prompt": [texts[row % len(texts)] for row in range(rows)]})


def make_trainer(
    model_path: str | Path,
    output_dir: str | Path,
    *,
    steps: int,
    rows: int = 64,
    optimizer: Any = None,
    callbacks: Any = None,
    peft_config: Any = None,
    eval_rows: int = 0,
    trainer_class: Any = None,
    config_class: Any = None,
    **config: Any,
) -> Any:
    """TRL's `GRPOTrainer` for the tiny model on the CPU; `config` goes to its `GRPOConfig`.

    Args:
        model_path: what `save_tiny_model` wrote.
        output_dir: the trainer's output directory.
        steps: optimizer steps.
        rows: prompts in the data set.
        optimizer: ``model -> (optimizer, scheduler)``; None is the trainer's own.
        callbacks: the trainer's callbacks.
        peft_config: adapters to train instead of the weights.
        eval_rows: prompts to evaluate on; 0 for no evaluation set.
        trainer_class: a subclass of `GRPOTrainer`, or another trainer with its arguments.
        config_class: the class of its arguments.
        config: values that replace those below.

    Returns:
        The trainer, not yet started.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.trainer_callback import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    defaults: dict[str, Any] = {
        "output_dir": str(output_dir),
        "max_steps": steps,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 1,
        "num_generations": 8,
        "max_completion_length": 16,
        "learning_rate": 3e-4,
        **ON_CPU,
    }
    if config_class is None:
        defaults["loss_type"] = "grpo"
    arguments = (config_class or GRPOConfig)(**(defaults | config))
    model = AutoModelForCausalLM.from_pretrained(model_path)
    trainer = (trainer_class or GRPOTrainer)(
        model=model,
        reward_funcs=letter_reward,
        args=arguments,
        train_dataset=prompts(rows),
        eval_dataset=prompts(eval_rows) if eval_rows else None,
        processing_class=AutoTokenizer.from_pretrained(model_path),
        callbacks=callbacks,
        peft_config=peft_config,
        **({"optimizers": optimizer(model)} if optimizer else {}),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
