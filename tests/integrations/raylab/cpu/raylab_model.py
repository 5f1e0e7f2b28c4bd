"""A model of 108,000 random parameters, its tokenizer, and sums to learn."""

import random

import torch
from tokenizers import pre_tokenizers
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer


def save(folder, template=None, **tokens):
    """Model and tokenizer into ``tiny`` of `folder`.

    Args:
        folder: of the lab.
        template: of chats.
        tokens: further special tokens, as the tokenizer takes them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(
        vocab={letter: i for i, letter in enumerate(letters)},
        merges=[],
        unk_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        **tokens,
    )
    if template is not None:
        tokenizer.chat_template = template
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


def sums():
    """64 pairs of numbers to add."""
    random.seed(0)
    return random.sample([(a, b) for a in range(0, 1000, 7) for b in range(0, 100, 3)], 64)
