"""What an adapter tells of its run beside log-probs: the values of `Monitor.step(run=...)`.

An adapter calls what it can where it happens; what it never tells stays unknown, and the rules
that would need it wait or say on what they rest (`klmonitor.numbers.runvalues`).

    watch.run.begin(step, policy, reference)    # training begins, or goes on
    watch.run.generated()                       # a batch is generated and scored by the reference
    watch.run.updates_at(optimizer)             # the optimizer is about to step
    watch.run.synced()                          # the reference was set anew
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn


class Progress:
    """Where a run stands.

    Attributes:
        beta: the coefficient of the KL penalty, None if unknown.
        updates: optimizer steps so far, where a step of the monitor is not one.
        scores_when_generating: whether the reference scores a batch when it is generated, so that
            a sync tells from the next generation on.
    """

    def __init__(self) -> None:
        """Nothing is known."""
        self.beta: float | None = None
        self.updates: float | None = None
        self.scores_when_generating = False
        self._before: int | None = None
        self._rate = math.nan
        self._synced = self._fresh = False
        self._models: tuple[nn.Module, nn.Module | None] | None = None
        self._formats: dict[str, float] = {}

    def begin(
        self,
        steps: int,
        policy: nn.Module | None = None,
        reference: nn.Module | None = None,
        bits: float = math.inf,
    ) -> None:
        """Training begins: call before its first step, also where a trainer trains again.

        Args:
            steps: optimizer steps that are behind these weights, as the trainer counts them.
            policy: the model that is trained.
            reference: where it is a module of its own.
            bits: of a number format that is computed in and no parameter has (autocast).
        """
        self._before = max(self._before or 0, steps)
        if policy is not None:
            self._models = policy, reference
            device = next((x.device.type for x in policy.parameters()), "cpu")
            stored = map(bits_of, (policy, reference or policy))
            self._formats = {"bits": min(bits, multiplied_in(device), *stored)}

    def updates_at(self, optimizer: Any) -> None:
        """The optimizer steps now, at the largest learning rate of its groups."""
        self._rate = max([float(group["lr"]) for group in optimizer.param_groups])
        if self._models is not None:  # once, while the policy is in the mode that it is scored in
            policy, reference = self._models
            self._models = None
            self._formats["dropout"] = dropout_of(policy)
            if reference is not None:
                self._formats["reference_dropout"] = dropout_of(reference)

    def synced(self) -> None:
        """The reference was set anew on purpose."""
        self._synced = True
        if not self.scores_when_generating:
            self.generated()

    def generated(self) -> None:
        """What is generated from here on is scored by the reference as it is now."""
        self._fresh = self._fresh or self._synced
        self._synced = False

    def values(self) -> dict[str, float]:
        """What is known at the end of a step, before `stepped`."""
        known = {
            "learning_rate": self._rate,
            "beta": self.beta,
            "updates": self.updates,
            "step_of_run": self._before,
            "reference_sync": 1.0 if self._fresh else None,
            **self._formats,
        }
        return {name: float(x) for name, x in known.items() if x is not None and math.isfinite(x)}

    def stepped(self) -> None:
        """A step is over."""
        if self._before is not None:
            self._before += 1
        self._rate, self._fresh = math.nan, False


def bits_of(model: nn.Module) -> float:
    """Of the narrowest format that a parameter is stored in; infinity of none."""
    return min((8.0 * x.element_size() for x in model.parameters()), default=math.inf)


def multiplied_in(device: str) -> float:
    """Bits that float32 matrices are multiplied in, infinity for all of theirs."""
    exact = device != "cuda" or torch.get_float32_matmul_precision() == "highest"
    return math.inf if exact else TF32


def dropout_of(model: nn.Module) -> float:
    """The largest rate of a dropout that is active now, 0 for none.

    Modules of torch, and the attributes with which models of transformers call the function.
    """
    rates = [0.0]
    for module in model.modules():
        if module.training:
            names = ("p",) if isinstance(module, DROPOUTS) else ("attention_dropout", "dropout")
            found = (getattr(module, name, 0.0) for name in names)
            rates += (float(rate) for rate in found if isinstance(rate, (int, float)))
    return max(rates)


TF32 = 19.0
"""Bits of TensorFloat-32, whose mantissa is float16's."""
DROPOUTS = (
    torch.nn.Dropout,
    torch.nn.Dropout1d,
    torch.nn.Dropout2d,
    torch.nn.Dropout3d,
    torch.nn.AlphaDropout,
    torch.nn.FeatureAlphaDropout,
)
