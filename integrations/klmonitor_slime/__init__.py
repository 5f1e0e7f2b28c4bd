"""slime and miles: a function for a path flag.

    --rollout-data-postprocess-path klmonitor_slime.watch

Both call it on every rank of Megatron's, once a rollout, when log-probs and advantages are there
and before the update: slime as ``f(args, rollout_id, rollout_data)``, miles as ``f(args)``, whose
data is taken from the frame that calls. Options come from the environment or a file
(`klmonitor.hooks.configuration`).
"""

from __future__ import annotations

import atexit
import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from klmonitor.boundary import say
from klmonitor.hooks.doors import door_options, entered
from klmonitor.hooks.handed import HandedWatch
from klmonitor.hooks.options import disabled
from klmonitor.hooks.prompts import prompt_keys
from klmonitor.hooks.watch import OUTERMOST

__all__ = ["watch"]

HELD = {"old": "log_probs", "ref": "ref_log_probs", "rollout": "rollout_log_probs"}
"""Policy -> key of its log-probs in the rollout data, a list of [T_i]."""
TRACKERS = (
    ("slime.observability.logging_utils", "slime.observability.metric_utils"),
    ("miles.utils.tracking_utils.tracking", "miles.utils.metric_utils"),
)
"""Where a metric is logged, and its step computed."""
OLD = (
    "slime takes the loss's own where a rollout is one update, --get-mismatch-metrics computes "
    "them before; miles leaves them out with --skip-actor-forward-only"
)


class _Rank:
    """What this process of Megatron's does: `watch`, or nothing."""

    def __init__(self, args: Any) -> None:
        """Find this rank's place.

        Raises:
            ValueError: an option is unknown, or has a value that cannot work.
        """
        self.watch: HandedWatch | None = None
        self._args, self._told = args, False
        if not disabled():
            options = door_options()
            self.watch = entered("slime", lambda: _opened(args, options))
        if self.watch is not None:
            atexit.register(self.watch.finish)

    def take(self, rollout_id: int, data: Any) -> None:
        """One rollout of this rank's: collective over the data-parallel group."""
        if self.watch is None:
            return
        guard = self.watch.guards[OUTERMOST]
        policies, layout = guard(given, data) or ({}, {})
        if "old" not in policies and not self._told:
            self._told = True
            guard(self.watch.monitor.note, f"no log_probs to compare with: {OLD}")
        guard(self.watch.take, int(rollout_id), policies, **layout)
        guard(self._log, int(rollout_id))
        for action in guard(self.watch.wanted) or ():
            guard(self.watch.say, f"on_alert: slime and miles cannot be asked to {action}")

    def _log(self, rollout_id: int) -> None:
        """Our numbers go where the trainer's go, on its step."""
        assert self.watch is not None
        row = self.watch.row(rollout_id)
        if not row or not self.watch.speaks:
            return
        for log, steps in TRACKERS:
            if log in sys.modules and steps in sys.modules:
                step = sys.modules[steps].compute_rollout_step(self._args, rollout_id)
                known = {**row, "rollout/step": step}
                sys.modules[log].log(self._args, known, step_key="rollout/step")


_rank: _Rank | None = None


def watch(args: Any, rollout_id: Any = None, rollout_data: Any = None) -> None:
    """Look at a rollout.

    Args:
        args: the trainer's.
        rollout_id: of the rollout; None (miles): the caller's local of this name.
        rollout_data: its columns; None (miles): the same.

    Raises:
        ValueError: at the first call: an option is unknown, or has a value that cannot work.
    """
    global _rank
    if rollout_data is None:
        found = sys._getframe(1).f_locals
        rollout_id, rollout_data = found.get("rollout_id"), found.get("rollout_data")
    if _rank is None:
        _rank = _Rank(args)
        if rollout_data is None and _rank.watch is not None:
            say("the caller has no rollout_data, so this run trains on without klmonitor")
            _rank.watch.detach()
            _rank.watch = None
    if rollout_data is not None:
        _rank.take(rollout_id, rollout_data)


def given(data: Any) -> tuple[dict[str, list[Tensor]], dict[str, Any]]:
    """Policies and layout of a rollout: lists with a tensor a sequence, of its response."""
    policies = {name: list(data[key]) for name, key in HELD.items() if data.get(key) is not None}
    masks = list(data["loss_masks"])
    lengths = [len(mask) for mask in masks]
    whole = list(data["tokens"])
    responses = [ids[len(ids) - n :] for ids, n in zip(whole, lengths, strict=True)]
    prompts = [ids[: len(ids) - n] for ids, n in zip(whole, lengths, strict=True)]
    layout: dict[str, Any] = {
        "mask": masks,
        "token_ids": responses,
        "prompt_ids": prompt_keys(
            pad_sequence(prompts, batch_first=True),
            pad_sequence([torch.ones_like(ids) for ids in prompts], batch_first=True),
        ),
    }
    for name, key in {"entropy": "entropy", "advantages": "advantages"}.items():
        column = data.get(key)
        if column is not None and [len(x) for x in column] == lengths:
            layout[name] = list(column)
    return policies, layout


def _opened(args: Any, options: Any) -> HandedWatch | None:
    """The watch of a rank that holds tokens of its own; None: another rank has the same.

    Raises:
        ImportError: there is no Megatron.
        LookupError: rows are shared out over context-parallel ranks.
    """
    from megatron.core import mpu

    if mpu.get_tensor_model_parallel_rank() != 0 or not mpu.is_pipeline_last_stage():
        return None
    if mpu.get_context_parallel_world_size() > 1:
        raise LookupError("context parallelism shares out the tokens of a row over ranks")
    group = mpu.get_data_parallel_group_gloo(with_context_parallel=True)
    speaks = torch.distributed.get_rank(group) == 0
    return HandedWatch(
        "slime or miles",
        options,
        output_dir=args.save,
        sources={name: f"{key} of the rollout data" for name, key in HELD.items()},
        missing={"policy": "it is computed within the loss, which no hook is given"},
        remedy="give it --ref-load and a KL coefficient",
        main=speaks,
        process_group=group,
    )
