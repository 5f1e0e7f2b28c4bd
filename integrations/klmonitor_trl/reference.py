"""A reference where TRL holds none: the model without its adapters, or one that the user gives.

TRL's default since 0.19 is beta = 0: it then computes no reference log-probs at all.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from klmonitor.hooks.options import Options
from klmonitor.hooks.reference import Reference, unchanged
from klmonitor_trl.names import log_prob_function

BARE = "adapters off: the bare base, not where training started"

TrlBatch: TypeAlias = Mapping[str, Any]
Source: TypeAlias = Callable[[TrlBatch, int], Tensor]
"""(generation batch, rows per forward pass) -> log-probs of its completions, [B, T]."""


def evaluated(
    reference: Reference[TrlBatch], trainer: Any, batch: TrlBatch, phase: str, seconds: float
) -> Tensor | None:
    """What a reference says of a generation batch, [B, T]; None if it is not its turn."""
    args = trainer.args
    rows = args.per_device_eval_batch_size if phase == "eval" else args.per_device_train_batch_size
    return reference.evaluate(batch, phase, seconds, rows, batch["completion_ids"].device)


def choose_reference(
    trainer: Any, kind: str, options: Options, say: Callable[[str], None]
) -> Reference[TrlBatch] | None:
    """The reference of ours that the options ask for, None if TRL's own or none.

    Args:
        trainer: the trainer.
        kind: of `kinds`; only ``"batch"`` generates in a way that a reference can be added to.
        options: what the user asked for.
        say: gets the line that tells its cost.

    Raises:
        TypeError: `reference` is of a kind that cannot be evaluated.
        ValueError: it cannot work with this trainer.
    """
    wanted, beta = options.reference, getattr(trainer, "beta", 0.0)
    if wanted is None or wanted is False:
        return None
    name = log_prob_function(trainer)
    if wanted == "auto":
        if beta or kind != "batch" or name is None or not has_adapters(trainer):
            return None
        source, label = adapters_off(trainer, getattr(trainer, name)), _what_is_left(trainer)
        if label == BARE:
            say(
                "the reference is the bare base model, not where training started: the adapter "
                "starts trained; attach with reference= the model with its first adapter"
            )
    elif not isinstance(wanted, nn.Module) and not callable(wanted):
        raise TypeError(
            f"reference is a {type(wanted).__name__}: give 'auto', a model, a function of "
            "(input_ids, attention_mask, completion length) or None"
        )
    elif kind != "batch":
        raise ValueError(f"reference= is of no use to a {type(trainer).__name__}: leave it 'auto'")
    elif beta:
        raise ValueError(
            f"reference=<{'model' if isinstance(wanted, nn.Module) else 'function'}> but TRL holds "
            f"a reference already (beta = {beta:g}): leave reference='auto'"
        )
    elif isinstance(wanted, nn.Module):
        source, label = given_model(trainer, wanted), type(wanted).__name__
    else:
        source, label = given_function(wanted), getattr(wanted, "__name__", "a function")
    return Reference(label, source, options.reference_every, say)


def given_function(function: Callable[[Tensor, Tensor, int], Tensor]) -> Source:
    """A function of ids and attention mask [B, P + T] and T that gives log-probs [B, T]."""

    def source(batch: Mapping[str, Any], rows: int) -> Tensor:
        ids, mask, length = sequences(batch)
        found = torch.cat(
            [
                function(ids[row : row + rows], mask[row : row + rows], length)
                for row in range(0, ids.shape[0], rows)
            ]
        )
        if found.shape != batch["completion_ids"].shape:
            raise ValueError(
                f"the reference function gave {list(found.shape)}, the completions are "
                f"{list(batch['completion_ids'].shape)}: return one log-prob a completion token"
            )
        return found

    return source


def adapters_off(trainer: Any, log_probs: Callable[..., Any]) -> Source:
    """The model that the adapters started from; their copy named ``ref`` where there is one.

    Args:
        trainer: its model carries PEFT adapters.
        log_probs: the trainer's own function, unwrapped.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    accepted = inspect.signature(log_probs).parameters

    def source(batch: Mapping[str, Any], rows: int) -> Tensor:
        images = {name: batch[name] for name in accepted if name in batch}
        if "batch_size" in accepted:
            images["batch_size"] = rows
        with unchanged(model), initial_weights(model):
            found = log_probs(trainer.model, *sequences(batch), **images)
        return found[0] if isinstance(found, tuple) else found  # type: ignore[no-any-return]  # TRL: untyped

    return source


def given_model(trainer: Any, model: nn.Module) -> Source:
    """A causal language model that the user supplies, moved to the trainer's device.

    Its log-probs are those of the logits divided by the trainer's temperature, in float32.
    """
    model.to(trainer.accelerator.device)
    temperature = getattr(trainer, "temperature", 1.0)
    accepted = inspect.signature(model.forward).parameters

    def source(batch: Mapping[str, Any], rows: int) -> Tensor:
        ids, attention_mask, length = sequences(batch)
        keep = {"logits_to_keep": length + 1} if "logits_to_keep" in accepted else {}
        parts = []
        with unchanged(model):
            for some in (slice(row, row + rows) for row in range(0, ids.shape[0], rows)):
                logits = model(ids[some], attention_mask=attention_mask[some], **keep).logits
                scores = (logits[:, -length - 1 : -1].float() / temperature).log_softmax(-1)
                sampled = ids[some, -length:].unsqueeze(-1)
                parts.append(scores.gather(-1, sampled).squeeze(-1))
        return torch.cat(parts)

    return source


def _what_is_left(trainer: Any) -> str:
    """What the policy is without the adapter that is trained, in words."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if "ref" in model.peft_config:
        return "TRL's adapter ref"
    active = model.active_adapter
    starts = (
        parameter.detach().any()
        for name, parameter in model.named_parameters()
        if f".lora_B.{active}." in name  # 0 where LoRA starts as the base
    )
    return BARE if any(starts) else "adapters off"


def has_adapters(trainer: Any) -> bool:
    """Whether the trainer's model carries PEFT adapters."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    return hasattr(model, "peft_config") and hasattr(model, "disable_adapter")


@contextmanager
def initial_weights(model: Any) -> Iterator[None]:
    """The policy as it was before training: adapters off, or TRL's copy of them in use."""
    if "ref" not in model.peft_config:
        with model.disable_adapter():
            yield
        return
    active = model.active_adapter
    model.set_adapter("ref")
    try:
        yield
    finally:
        model.set_adapter(active)


def sequences(batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, int]:
    """Prompt and completion as one: ids and attention mask [B, P + T], and T."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    return ids, mask, batch["completion_ids"].shape[1]
