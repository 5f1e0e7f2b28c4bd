"""TRL's way to the monitor: its models and modes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from klmonitor.hooks.feed import Capture, Feed


@dataclass
class TrainerFeed(Feed):
    """The feed of one of TRL's trainers.

    Attributes:
        trainer: the trainer, for its models and its mode.
        model: the trainer's model, without what distributes it.
    """

    trainer: Any = None
    model: Any = field(init=False)
    _adapted: bool = field(init=False)

    def __post_init__(self) -> None:
        """Look up the model itself, without what distributes it, once."""
        self.model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        self._adapted = hasattr(self.model, "peft_config")

    @property
    def phase(self) -> str:
        """``"train"`` or ``"eval"``, by the mode of the model, as TRL tells them apart."""
        return "train" if self.trainer.model.training else "eval"

    def observe(self, policies: Mapping[str, Tensor], *, phase: str = "", **layout: Any) -> None:
        """As `Feed.observe`; without a phase in that of the model."""
        super().observe(policies, phase=phase or self.phase, **layout)

    def is_reference(self, model: Any) -> bool:
        """Whether a model, here and now, gives the reference's log-probs."""
        inner = self.model
        if model is not None and model is getattr(self.trainer, "ref_model", None):
            return model is not inner  # the trained model itself would be no other side
        if not (self._adapted or "peft_config" in vars(inner)):
            return False
        return getattr(inner, "_adapters_disabled", False) or _active_adapter(inner) == "ref"


class TrainerCapture(Capture):
    """How the log-probs of one kind of TRL's trainers are had."""

    feed: TrainerFeed
    closes_in_log: ClassVar[bool] = False
    """Whether a step is over when the trainer logs it, and not at ``on_step_end``."""
    scores_when_generating: ClassVar[bool] = False
    """Whether the reference scores a batch when it is generated."""

    def in_log(self) -> None:
        """Called before a training row is logged, where `closes_in_log`; most have nothing."""


def _active_adapter(model: Any) -> str | None:
    """The adapter in use of a model that has some, None where several are active."""
    active = getattr(model, "active_adapter", None)  # transformers' own adapters have no such name
    return active if isinstance(active, str) else None
