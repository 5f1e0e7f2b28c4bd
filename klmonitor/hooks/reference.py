"""A reference that is evaluated now and then, where the trainer holds none.

It costs one more forward pass, without gradient and without dropout, on every so many generation
batches. Neither the random number generators nor the model notice it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Batch = TypeVar("Batch")


class Reference(Generic[Batch]):
    """Evaluates a source on every so many generation batches, and measures what that costs.

    Attributes:
        name: for messages.
        every: generation batches per evaluation.
        passes: evaluations so far.
        seconds: what they took in all.
    """

    def __init__(
        self,
        name: str,
        source: Callable[[Batch, int], Tensor],
        every: int,
        say: Callable[[str], None],
    ) -> None:
        """A reference for one trainer.

        Args:
            name: for messages.
            source: (generation batch, rows a forward pass) -> log-probs of its completions, [B, T].
            every: generation batches per evaluation.
            say: gets the line that tells its cost.
        """
        self.name, self.every = name, every
        self.passes, self.seconds = 0, 0.0
        self._source, self._say = source, say
        self._batches = {"train": 0, "eval": 0}

    def evaluate(
        self, batch: Batch, phase: str, seconds: float, rows: int, device: torch.device
    ) -> Tensor | None:
        """Log-probs of the completions of a generation batch, [B, T]; None if it is not its turn.

        Args:
            batch: what the trainer generated.
            phase: ``"train"`` or ``"eval"``; each has its own turn, and the first batch is it.
            seconds: what generating the batch took.
            rows: of a forward pass.
            device: where the batch is.
        """
        turn = self._batches[phase] % self.every == 0
        self._batches[phase] += 1
        if not turn:
            return None
        if self.passes == 0:
            _wait(device)
        started = time.perf_counter()
        with torch.no_grad(), kept_random_state(device):
            log_probs = self._source(batch, rows).detach()
        if self.passes == 0:
            _wait(device)
        took = time.perf_counter() - started
        self.seconds += took
        self.passes += 1
        if self.passes == 1:
            share = took / seconds if seconds else float("nan")
            self._say(
                f"the first reference pass ({self.name}) took {1e3 * took:.0f} ms, {share:.0%} of "
                f"its generation batch; one batch in {self.every} has it (reference_every)"
            )
        return log_probs

    def start_evaluation(self) -> None:
        """The next evaluation's first batch has its turn."""
        self._batches["eval"] = 0


@contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """Leave the generators of the host and of `device` as they were."""
    if device.type in ("cpu", "mps"):
        with torch.random.fork_rng(devices=[]):
            yield
        return
    index = device.index
    if index is None:
        index = torch.get_device_module(device.type).current_device()
    with torch.random.fork_rng(devices=[index], device_type=device.type):
        yield


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Dropout off inside; every module's mode and every parameter's flag as before after it."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag in flags:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)


def _wait(device: torch.device) -> None:
    """Let a device finish, so that a clock tells the truth."""
    if device.type not in ("cpu", "meta"):
        torch.get_device_module(device.type).synchronize()
