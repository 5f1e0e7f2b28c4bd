"""NeMo-RL: ``train_data_step{N}.jsonl`` in its log directory, written by default.

One line a sample, every value in a list of one. Log-probs are aligned with ``token_ids`` of prompt
and completion, padded on the right; the first token has none. A token counts where both masks say
so. ``prev_logprobs`` are the trainer's before the update (zeros where it skips them).
Source: ``nemo_rl.algorithms.grpo`` and ``Logger.log_batched_dict_as_jsonl``, August 2026.
"""

from __future__ import annotations

import re

from klmonitor_dumps.layout import Layout

NEMO_RL = Layout(
    name="nemo-rl",
    title="NeMo-RL, train_data_step{N}.jsonl",
    columns={
        "rollout": ("generation_logprobs",),
        "old": ("prev_logprobs",),
        "ref": ("reference_policy_logprobs",),
        "mask": ("token_loss_mask", "sample_loss_mask"),
        "tokens": ("token_ids",),
    },
    required=frozenset({"generation_logprobs", "prev_logprobs", "token_loss_mask"}),
    path=re.compile(r"train_data_step(\d+)\.jsonl"),
    first=1,
    prompts_from_tokens=True,
)
