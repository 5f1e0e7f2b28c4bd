"""A model of 108,000 random parameters, a tokenizer, sums to learn: ``make_tiny.py FOLDER``."""

import random
import sys
from pathlib import Path

import pandas as pd
import torch
from tokenizers import pre_tokenizers
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
letters = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Qwen2Tokenizer(
    vocab={letter: i for i, letter in enumerate(letters)},
    merges=[],
    unk_token="<|endoftext|>",
    eos_token="<|im_end|>",
    pad_token="<|endoftext|>",
    additional_special_tokens=["<|im_start|>"],
)
tokenizer.chat_template = (
    "{% for m in messages %}<|im_start|>{{m['role']}}\n{{m['content']}}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
tokenizer.save_pretrained(folder / "tiny")
torch.manual_seed(0)
config = Qwen2Config(
    vocab_size=264,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    tie_word_embeddings=False,
    pad_token_id=tokenizer.pad_token_id,
    eos_token_id=tokenizer.eos_token_id,
    bos_token_id=None,
)
Qwen2ForCausalLM(config).save_pretrained(folder / "tiny")
random.seed(0)
pairs = random.sample([(a, b) for a in range(0, 1000, 7) for b in range(0, 100, 3)], 64)
rows = [
    {
        "data_source": "sums",
        "prompt": [{"role": "user", "content": f"{a}+{b}="}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(a + b)},
        "extra_info": {"index": i, "split": "train"},
    }
    for i, (a, b) in enumerate(pairs)
]
pd.DataFrame(rows).to_parquet(folder / "train.parquet")
pd.DataFrame(rows[:8]).to_parquet(folder / "val.parquet")
(folder / "reward.py").write_text(
    "def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):\n"
    "    said = solution_str or ''\n"
    "    return float(sum(letter.isdigit() for letter in said)) / max(1, len(said))\n"
)
