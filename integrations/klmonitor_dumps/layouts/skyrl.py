"""SkyRL: ``dumped_data/global_step_N_training_input.pkl`` with ``trainer.dump_data_batch``.

A pickle of a batch, so read with ``--trust`` alone; SkyRL need not be installed (see
`klmonitor_dumps.pickles`). [B, T] of the response, padded on the left; ``sequences`` are prompt and
response. ``action_log_probs`` are the trainer's before the update.
Source: ``skyrl.backends.skyrl_train.training_batch``, August 2026.
"""

from __future__ import annotations

import re

from klmonitor_dumps.layout import Layout

SKYRL = Layout(
    name="skyrl",
    title="SkyRL, dumped_data/global_step_N_training_input.pkl",
    columns={
        "rollout": ("rollout_logprobs",),
        "old": ("action_log_probs",),
        "ref": ("base_action_log_probs",),
        "mask": ("loss_mask",),
        "tokens": ("sequences",),
        "real": ("attention_mask",),
    },
    required=frozenset({"action_log_probs", "loss_mask"}),
    path=re.compile(r"global_step_(\d+)_training_input"),
    prompts_from_tokens=True,
)
