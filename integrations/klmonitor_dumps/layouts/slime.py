"""slime and miles: ``train_data/{rollout_id}.pt`` under ``--dump-details``.

``torch.save`` of an object with ``rollout_id`` and either ``samples``, one a sequence (format 2),
or ``rollout_data``, a list a column (before it, and miles: a file a rank). Log-probs and
``loss_masks`` are those of the response; ``tokens`` are prompt and response. ``log_probs`` are the
trainer's before the update. Source: ``slime.observability.train_data_utils``, August 2026.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from klmonitor_dumps.layout import Layout, Row

COLUMNS = ("rollout_log_probs", "log_probs", "ref_log_probs", "loss_masks", "entropy", "tokens")


def rows(record: Row) -> Iterator[Row]:
    """A row a sequence, with the step of the whole."""
    step = {"rollout_id": record["rollout_id"]} if "rollout_id" in record else {}
    if "samples" in record:
        for sample in record["samples"]:
            yield {**sample, **step}
        return
    data: dict[str, Any] = record.get("rollout_data", record)
    held = {name: data[name] for name in COLUMNS if data.get(name) is not None}
    for values in zip(*held.values(), strict=False):
        yield dict(zip(held, values, strict=True)) | step


SLIME = Layout(
    name="slime",
    title="slime or miles, train_data/{rollout_id}.pt",
    columns={
        "rollout": ("rollout_log_probs",),
        "old": ("log_probs",),
        "ref": ("ref_log_probs",),
        "mask": ("loss_masks", "loss_mask"),
        "entropy": ("entropy",),
        "tokens": ("tokens",),
        "step": ("rollout_id",),
    },
    required=frozenset({"rollout_id"}),
    path=re.compile(r"(?:^|/)(\d+)(?:_\d+)?\.pt$"),
    prompts_from_tokens=True,
    rows=rows,
)
