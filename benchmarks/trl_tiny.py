"""Local stand-ins for the tiny models and data sets that TRL's tests load from the hub.

    python benchmarks/trl_tiny.py CHECKOUT

TRL makes its tiny models and data sets with scripts of its own (``scripts/``). We run those
scripts as they are, so the configurations are TRL's. What they need of the hub, a published
model's tokenizer and configuration, we write first: a tokenizer trained here, with the published
one's special tokens and the chat template that TRL ships for it. It has a few hundred tokens, which
makes the tests several times faster; those of Qwen 3, whose ids tests spell out, and of models that
see, which must not sample the token of an image, have as many as published. The results are put
under the hub's names into the checkout: a path beats the hub, so tests that run there find
``trl-internal-testing/zen`` as a directory.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import tokenizers
import torch
import transformers
import trl
from trl_published import PUBLISHED, Published

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
DATA = ("zen", "zen_image", "zen_multi_image")
LEARNED = 600
"""Tokens of a tokenizer that are learned; bytes are 256 of them."""

PLAIN = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {% if m['content'] is string %}"
    "{{ m['content'] }}{% else %}{% for part in m['content'] %}{% if part['type'] == 'image' %}"
    "IMAGE\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
"""For published models whose template TRL does not ship."""

SCRIPTS = {
    "for_causal_lm": """cohere2_for_causal_lm gemma2_for_causal_lm glm4_moe_for_causal_lm
        gpt_oss_for_causal_lm llama_for_causal_lm_3_2 mistral_for_causal_lm_0_2
        nemotron_3_nano_for_causal_lm qwen2_for_causal_lm_2_5 qwen3_for_causal_lm
        qwen3_moe_for_causal_lm remote_for_causal_lm""",
    "for_sequence_classification": """llama_for_sequence_classification_3_2
        qwen2_for_sequence_classification_2_5 qwen3_for_sequence_classification""",
    "for_conditional_generation": """gemma3_for_conditional_generation
        gemma4_for_conditional_generation llava_next_for_conditional_generation
        qwen2_5_vl_for_conditional_generation qwen2_vl_for_conditional_generation
        qwen3_5_for_conditional_generation_nothink qwen3_6_for_conditional_generation""",
}


def main(checkout: Path) -> int:
    """Make everything; the number of scripts that failed."""
    os.chdir(checkout)
    sys.path.insert(0, str(checkout))
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  # what TRL's scripts draw images from
    failed = [name for name in PUBLISHED if not attempt(name, publish)]
    failed += [name for name in DATA if not attempt(name, make_data)]
    common = importlib.import_module("scripts.generate_tiny_models._common")
    for check in ("check_transformers_version", "check_dtype_pattern", "print_config_diff"):
        setattr(common, check, lambda *_: None)  # they compare with the hub
    common.push_to_hub = save  # type: ignore[attr-defined]
    scripts = [f"{kind}.{name}" for kind, names in SCRIPTS.items() for name in names.split()]
    failed += [
        name
        for name in scripts
        if not attempt(f"scripts.generate_tiny_models.{name}", importlib.import_module)
    ]
    print(f"made {len(DATA) + len(scripts) - len(failed)}, failed: {', '.join(failed) or 'none'}")
    return len(failed)


def attempt(name: str, make: Callable[[str], Any]) -> bool:
    """Whether a script did its work; a model that is missing fails its tests, and only those."""
    try:
        make(name)
    except Exception:  # noqa: BLE001 - scripts of others, reported by name
        traceback.print_exc()
        return False
    return True


def make_data(name: str) -> None:
    """Run one of TRL's scripts for data sets; what it would upload is kept as parquet files."""
    repository = f"trl-internal-testing/{name.replace('_', '-')}"
    layout: dict[str, list[dict[str, str]]] = {}

    def keep(parts: Any, _: str, config_name: str) -> None:
        for split, rows in parts.items():
            path = Path(repository, config_name, f"{split}.parquet")
            path.parent.mkdir(parents=True, exist_ok=True)
            rows.to_parquet(path)
            file = {"split": split, "path": f"{config_name}/{split}.parquet"}
            layout.setdefault(config_name, []).append(file)

    datasets.DatasetDict.push_to_hub = keep
    importlib.import_module(f"scripts.generate_{name}_dataset").main(0.1, True, repository)
    configs = [{"config_name": name, "data_files": files} for name, files in layout.items()]
    # YAML, of which JSON is a part.
    card = f"---\nconfigs: {json.dumps(configs)}\n---\n"
    Path(repository, "README.md").write_text(card)


def save(model: Any, tokenizer: Any, generation: Any, prefix: str, suffix: str = "") -> None:
    """What TRL's scripts call to upload a model: keep it under the name it would have had."""
    name = "-".join(part for part in (prefix, type(model).__name__, suffix) if part)
    for one in (model, tokenizer, generation):
        if one is not None:
            one.save_pretrained(f"trl-internal-testing/{name}")


def publish(name: str) -> None:
    """Write the stand-in for a published model: tokenizer, configuration, processor."""
    model = PUBLISHED[name]
    tokenizer = make_tokenizer(model)
    ids = {role: getattr(tokenizer, role) for role in ("bos_token_id", "eos_token_id")}
    ids["pad_token_id"] = tokenizer.pad_token_id
    ids = {role: number for role, number in ids.items() if number is not None}
    transformers.GenerationConfig(do_sample=True, **ids).save_pretrained(name)
    if model.config:
        settings = with_ids(model.settings, tokenizer.get_vocab())
        text = {"vocab_size": len(tokenizer), **ids}
        if model.processor:
            settings["text_config"] = {**text, **settings.get("text_config", {})}
        else:
            settings |= text
        getattr(transformers, model.config)(**settings).save_pretrained(name)
    tokenizer.save_pretrained(name)
    if model.processor:
        make_processor(model.processor, tokenizer).save_pretrained(name)


def make_processor(classes: dict[str, dict[str, Any]], tokenizer: Any) -> Any:
    """A processor of its parts, each given under the name that it is known by."""
    (whole, settings), *rest = classes.items()
    kinds = {"Image": "image_processor", "Video": "video_processor", "Audio": "feature_extractor"}
    parts = {
        next(kinds[kind] for kind in kinds if kind in name): getattr(transformers, name)(**given)
        for name, given in rest
    }
    return getattr(transformers, whole)(
        tokenizer=tokenizer, chat_template=tokenizer.chat_template, **parts, **settings
    )


def with_ids(settings: Any, vocabulary: dict[str, int]) -> Any:
    """Settings with the ids of the tokens that they name."""
    if isinstance(settings, dict):
        return {name: with_ids(value, vocabulary) for name, value in settings.items()}
    return vocabulary.get(settings, settings) if isinstance(settings, str) else settings


def make_tokenizer(model: Published) -> Any:
    """A byte-level BPE tokenizer of a few hundred tokens, with fillers up to the first special."""
    file = TEMPLATES / f"{model.template}.jinja"
    image = model.marks.get("image_token", "")
    template = file.read_text(encoding="utf-8") if file.exists() else PLAIN.replace("IMAGE", image)
    named = re.findall(r"<\|[\w▁]+\|>|\[gMASK\]|<sop>|<(?:start|end)_of_\w+>", template)
    own = [token for token in (model.pad, model.bos, model.eos, *model.marks.values()) if token]
    special = list(model.special) or list(dict.fromkeys(own + named))
    vocabulary, merges = learn([template, *Path("tests").rglob("*.py")], model)
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    hidden = [token for token in special if token.startswith("<|") or not model.special]
    core.add_tokens(special)
    core.add_special_tokens(hidden)
    if model.bos:
        core.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{model.bos} $A", special_tokens=[(model.bos, core.token_to_id(model.bos))]
        )
    roles = {"eos_token": model.eos, "pad_token": model.pad, "bos_token": model.bos}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=template,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens=model.marks,
        **{role: token for role, token in roles.items() if token},
    )


def learn(texts: Iterable[str | Path], model: Published) -> tuple[dict[str, int], Any]:
    """Vocabulary and merges: bytes at 0-255, `model.known` at its ids, learned ones between."""
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    corpus = (text if isinstance(text, str) else text.read_text() for text in texts)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator(
        corpus, tokenizers.trainers.BpeTrainer(vocab_size=LEARNED, initial_alphabet=alphabet,
                                               show_progress=False)
    )  # fmt: skip
    learned = json.loads(core.to_str())["model"]
    # GPT-2's order of bytes, which is Qwen's: printable ones first, as they stand.
    order = sorted(alphabet, key=ord)
    at = {spelled(text): number for number, text in model.known.items()}
    vocabulary = {**{byte: number for number, byte in enumerate(order)}, **at}
    taken = set(vocabulary.values())
    free = (number for number in range(len(order), 10**6) if number not in taken)
    for token in sorted(learned["vocab"], key=learned["vocab"].get):
        if token not in vocabulary:
            vocabulary[token] = next(free)
    while len(vocabulary) < model.first:
        number = next(free)
        vocabulary[f"<filler {number}>"] = number
    return vocabulary, [tuple(pair) for pair in learned["merges"]]


def spelled(text: str) -> str:
    """A text as byte-level BPE spells it."""
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return str(level.pre_tokenize_str(text)[0][0])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
