"""Logits of policy and reference at some positions of TRL's generation batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from klmonitor.hooks.audit import Audit
from klmonitor.hooks.options import Options
from klmonitor.hooks.reference import unchanged
from klmonitor.monitor import Monitor
from klmonitor_trl.names import GENERATE, is_rloo
from klmonitor_trl.reference import has_adapters, initial_weights, sequences

IMAGES = ("pixel_values", "image_grid_thw", "pixel_attention_mask", "image_sizes")
"""Keys of a batch whose logits ids alone do not give."""


def audit_of(
    trainer: Any,
    kind: str,
    options: Options,
    monitor: Monitor,
    *,
    main: bool,
    say: Callable[[str], None],
) -> Audit[Mapping[str, Any]] | None:
    """The audit of a trainer; None where it is not asked for, or cannot be, which is said."""
    if options.audit_every is None:
        return None
    why = obstacle(trainer, kind, options)
    if why:
        say(f"audit_every = {options.audit_every} is off: {why}")
        return None
    return Audit(
        monitor,
        "old_ref" if is_rloo(trainer) else "policy_ref",
        TrlLogits(trainer, options.reference),
        every=options.audit_every,
        positions=options.audit_positions,
        rows=trainer.args.per_device_train_batch_size,
        temperature=float(getattr(trainer, "temperature", 1.0)),
        main=main,
        seed=trainer.accelerator.process_index,
        say=say,
    )


def obstacle(trainer: Any, kind: str, options: Options) -> str:
    """Why logits are not to be had; empty: they are."""
    if kind != "batch" or not callable(getattr(trainer, GENERATE, None)):
        name = type(trainer).__name__
        return f"it needs the generation batches of GRPO or RLOO, not those of {name}"
    if getattr(trainer, "is_fsdp_enabled", False):
        return "FSDP shards the parameters, and one more forward pass would be a collective"
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    if plugin is not None and plugin.zero_stage == 3:
        return "ZeRO-3 shards the parameters, and one more forward pass would be a collective"
    model = trainer.accelerator.unwrap_model(trainer.model)
    if _head(model) is None:
        return f"{type(model).__name__} tells no output embeddings"
    if getattr(trainer, "ref_model", None) is None and not has_adapters(trainer):
        if isinstance(options.reference, nn.Module):
            return ""
        return "there is no reference model whose logits could be had"
    return ""


class TrlLogits:
    """Forward passes over the sequences of the positions, with logits at these alone.

    The hidden states of the positions are chosen before the model's last layer, so that no logits
    of other positions are ever made.

    Args:
        trainer: its model, and its reference.
        reference: the user's own reference model, where the trainer holds none.
    """

    def __init__(self, trainer: Any, reference: Any) -> None:
        self._model = trainer.accelerator.unwrap_model(trainer.model)
        own = getattr(trainer, "ref_model", None)
        given = reference if isinstance(reference, nn.Module) else None
        self._ref = given if own is None else trainer.accelerator.unwrap_model(own)

    def __call__(
        self, batch: Mapping[str, Any], rows: Tensor, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits of policy and reference, [n, V].

        Raises:
            LookupError: the batch has images.
        """
        if any(batch.get(name) is not None for name in IMAGES):
            raise LookupError("an audit does not read batches with images")
        ids, mask, length = sequences(batch)
        some, place = torch.unique(rows, return_inverse=True)
        inputs = {"input_ids": ids[some], "attention_mask": mask[some], "use_cache": False}
        at = ids.shape[1] - length + columns - 1  # the position before a token gives its logits
        policy = _logits(self._model, inputs, place, at)
        if self._ref is not None:
            return policy, _logits(self._ref, inputs, place, at)
        with initial_weights(self._model):
            return policy, _logits(self._model, inputs, place, at)


def _logits(model: Any, inputs: Mapping[str, Any], rows: Tensor, at: Tensor) -> Tensor:
    with unchanged(model), _only(_head(model), rows, at):
        logits: Tensor = model(**inputs).logits
    if logits.shape[:2] != (1, len(at)):
        raise LookupError(f"{type(model).__name__} gave logits of shape {list(logits.shape)}")
    return logits[0]


def _head(model: Any) -> Any:
    """The last layer, None if the model does not tell it."""
    get = getattr(model, "get_output_embeddings", None)
    return get() if callable(get) else None


@contextmanager
def _only(head: Any, rows: Tensor, at: Tensor) -> Iterator[None]:
    """The layer gets the hidden states of some places alone, as one sequence."""

    def chosen(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return args[0][rows, at].unsqueeze(0), *args[1:]

    hook = head.register_forward_pre_hook(chosen)
    try:
        yield
    finally:
        hook.remove()
