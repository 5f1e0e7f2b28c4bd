"""The published models that TRL's scripts for tiny models start from, as far as they ask."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

QWEN_SPECIAL = """<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|>
<|box_start|> <|box_end|> <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|>
<|vision_pad|> <|image_pad|> <|video_pad|> <tool_call> </tool_call> <|fim_prefix|> <|fim_middle|>
<|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> <tool_response> </tool_response> <think>
</think>"""
QWEN_TEXT = {
    **{198: "\n", 220: " ", 293: " b", 314: " {", 330: ' "', 397: ">\n", 411: "out", 450: "dec"},
    **{497: '",', 522: "</", 606: "name", 788: '":', 894: " any", 927: "sh", 944: "'t"},
    **{1318: "text", 1414: " know", 1513: " don", 2765: " won", 4913: '{"', 5212: ' {"'},
    **{5392: " tool", 6023: "hi", 6659: "call", 7692: "async", 9520: "step", 11248: "}}\n"},
    **{13477: "rement", 14172: "tool", 16252: " increment", 16370: "arguments", 17453: "Done"},
    **{22785: "_tool", 35744: "increment", 64648: "multiply", 93054: "_multiply", 95642: '"}}\n'},
}
"""Ids of Qwen 2 and 3 that the tests spell out, and what they say."""
QWEN35_TEXT = {
    **{198: "\n", 510: "</", 866: " any", 914: "'t", 1366: " know", 1459: " don"},
    **{1628: "function", 5224: " tool", 13744: "=s", 16936: "Done", 22076: "_tool"},
    **{30091: "creenshot"},
}
"""The same of Qwen 3.5."""


@dataclass(frozen=True)
class Published:
    """A published model, as far as TRL's scripts ask for it.

    Attributes:
        template: file of TRL's chat template; empty for a plain one.
        eos: token that ends a turn.
        pad: token that pads; empty if the published tokenizer has none.
        bos: token that begins a text; empty if none.
        first: id of the first special token; 0 puts special tokens after the learned ones.
        special: all special tokens in their order; by default those that the template names.
        known: id -> text of tokens whose ids the tests spell out.
        config: class of the configuration, where a script asks for it.
        settings: its arguments; a token in the place of a number stands for its id.
        marks: name -> token of those that stand for an image, for models that see.
        processor: class -> settings, the processor's own and then those of its parts.
    """

    template: str
    eos: str
    pad: str = ""
    bos: str = ""
    first: int = 0
    special: tuple[str, ...] = ()
    known: dict[int, str] = field(default_factory=dict)
    config: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    marks: dict[str, str] = field(default_factory=dict)
    processor: dict[str, dict[str, Any]] = field(default_factory=dict)


def qwen(template: str, special: int, first: int = 1024, **more: Any) -> Published:
    """A model of the Qwen family, with so many of its special tokens."""
    known = {151643: QWEN_TEXT, 248044: QWEN35_TEXT}.get(first, {})
    return Published(
        template, "<|im_end|>", "<|endoftext|>", first=first, known=known,
        special=tuple(QWEN_SPECIAL.split()[:special]), **more,
    )  # fmt: skip


QWEN_MARKS = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
QWEN_IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "tie_word_embeddings": True,
}
QWEN_EYES: dict[str, dict[str, Any]] = {"Qwen2VLImageProcessor": {}, "Qwen2VLVideoProcessor": {}}
QWEN3_EYES: dict[str, dict[str, Any]] = {
    "Qwen2VLImageProcessor": {"patch_size": 16}, "Qwen3VLVideoProcessor": {},
}  # fmt: skip


def qwen_with_eyes(template: str, config: str, processor: str, width: int) -> Published:
    """A model of Qwen 2 that sees; `width`: of its layers between."""
    return qwen(
        template, 22, 151643, config=config, marks=QWEN_MARKS,
        settings={"text_config": {"intermediate_size": width}, **QWEN_IDS},
        processor={processor: {}, **QWEN_EYES},
    )  # fmt: skip


def qwen3_with_eyes(template: str, config: str, width: int = 0) -> Published:
    """A model of Qwen 3.5 or newer, which all see; `width` where a script asks for it."""
    settings = {"text_config": {"intermediate_size": width}, **QWEN_IDS} if width else {}
    return qwen(
        template, 26, 248044, config=config, marks=QWEN_MARKS, settings=settings,
        processor={"Qwen3VLProcessor": {}, **QWEN3_EYES},
    )  # fmt: skip


LLAMA = Published("llama3_2", "<|eot_id|>", bos="<|begin_of_text|>", config="LlamaConfig")
PUBLISHED = {
    "Qwen/Qwen2.5-32B-Instruct": qwen("qwen2_5", 22, config="Qwen2Config"),
    "Qwen/Qwen3-8B": qwen("qwen3", 26, 151643),
    "Qwen/Qwen3-4B": qwen("qwen3", 26, config="Qwen3Config"),
    "Qwen/Qwen3-30B-A3B": qwen("qwen3", 26, 151643),
    "meta-llama/Llama-3.2-1B-Instruct": LLAMA,
    "mistralai/Mistral-7B-Instruct-v0.2": Published("", "</s>", bos="<s>"),
    "CohereLabs/tiny-aya-earth": Published(
        "cohere2", "<|END_OF_TURN_TOKEN|>", "<PAD>", "<BOS_TOKEN>"
    ),
    "openai/gpt-oss-20b": Published("gptoss", "<|return|>", "<|endoftext|>", "<|startoftext|>"),
    "zai-org/GLM-4.5": Published("glm4moe", "<|endoftext|>", "<|endoftext|>"),
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": Published(
        "nemotron_3_nano", "<|im_end|>", "<|im_end|>", "<s>"
    ),
    "google/gemma-2-2b-it": Published("gemma", "<eos>", "<pad>", "<bos>"),
    "Qwen/Qwen2.5-VL-3B-Instruct": qwen_with_eyes(
        "qwen2_5_vl", "Qwen2_5_VLConfig", "Qwen2_5_VLProcessor", 11008
    ),
    "Qwen/Qwen2-VL-2B-Instruct": qwen_with_eyes(
        "qwen2_vl", "Qwen2VLConfig", "Qwen2VLProcessor", 8960
    ),
    "Qwen/Qwen3.5-0.8B": qwen3_with_eyes("qwen3_5_nothink", "Qwen3_5Config", 3584),
    "Qwen/Qwen3.6-35B-A3B": qwen3_with_eyes("qwen3_6", "Qwen3_5MoeConfig"),
    "google/gemma-3-4b-it": Published(
        "gemma3", "<eos>", "<pad>", "<bos>", 262144,
        config="Gemma3Config",
        settings={
            "image_token_index": "<image_soft_token>",
            "boi_token_index": "<start_of_image>",
            "eoi_token_index": "<end_of_image>",
            "vision_config": {"patch_size": 14, "vision_use_head": False},
        },
        marks={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
        processor={"Gemma3Processor": {"image_seq_length": 256}, "Gemma3ImageProcessor": {}},
    ),
    "google/gemma-4-E2B-it": Published(
        "gemma4", "<eos>", "<pad>", "<bos>", 262000,
        config="Gemma4Config",
        settings={"vision_config": {}, "image_token_id": "<|image|>", "boi_token_id": "<|image>",
                  "eoi_token_id": "<image|>", "video_token_id": "<|video|>",
                  "audio_token_id": "<|audio|>", "boa_token_id": "<|audio>"},
        marks={"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>",
               "video_token": "<|video|>", "audio_token": "<|audio|>", "boa_token": "<|audio>",
               "eoa_token": "<audio|>"},
        processor={"Gemma4Processor": {}, "Gemma4AudioFeatureExtractor": {},
                   "Gemma4ImageProcessor": {}, "Gemma4VideoProcessor": {}},
    ),
    "llava-hf/llava-v1.6-mistral-7b-hf": Published(
        "llava_next", "</s>", "<pad>", "<s>", 32000,
        config="LlavaNextConfig",
        settings={
            "image_token_index": "<image>",
            "text_config": {"model_type": "mistral", "intermediate_size": 14336},
        },
        marks={"image_token": "<image>"},
        processor={
            "LlavaNextProcessor": {
                "patch_size": 14,
                "vision_feature_select_strategy": "default",
                "num_additional_image_tokens": 1,
            },
            "LlavaNextImageProcessor": {
                "size": {"shortest_edge": 336},
                "crop_size": {"height": 336, "width": 336},
            },
        },
    ),
}  # fmt: skip
