"""prime-rl: ``token_exports/step_N/rank_R.jsonl`` where ``enable_token_export`` is on.

One line a sequence of prompt and completion; the trainer's log-probs are those of the forward pass
that is trained on. Values that were not finite are null.
Source: ``prime_rl.trainer.rl.token_export``, August 2026.
"""

from __future__ import annotations

import re

from klmonitor_dumps.layout import Layout

PRIME_RL = Layout(
    name="prime-rl",
    title="prime-rl, token_exports/step_N/rank_R.jsonl",
    columns={
        "rollout": ("inference_logprobs",),
        "policy": ("trainer_logprobs",),
        "mask": ("loss_mask",),
        "entropy": ("entropy",),
        "tokens": ("token_ids",),
        "group": ("env_name",),
        "step": ("step",),
    },
    required=frozenset({"inference_logprobs", "trainer_logprobs", "loss_mask"}),
    path=re.compile(r"step_(\d+)/rank_\d+\.jsonl"),
    prompts_from_tokens=True,
)
