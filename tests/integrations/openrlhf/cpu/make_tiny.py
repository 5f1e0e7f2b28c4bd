"""A model of 108,000 random parameters, a tokenizer, sums to learn: ``make_tiny.py FOLDER``."""

import json
import random
import sys
from pathlib import Path

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
lines = [json.dumps({"input": f"{a}+{b}=", "label": str(a + b)}) for a, b in pairs]
(folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
(folder / "reward.py").write_text(
    "import torch\n"
    "def reward_func(queries, prompts, labels, **kwargs):\n"
    "    said = [q[len(p):] for q, p in zip(queries, prompts)]\n"
    "    found = [sum(c.isdigit() for c in s) / max(1, len(s)) for s in said]\n"
    "    found = torch.tensor(found)\n"
    "    return {'rewards': found, 'scores': found.clamp(0, 1), 'extra_logs': {}}\n"
)
