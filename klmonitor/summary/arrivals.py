"""Micro-batches that lie on a GPU: copied to the host, and summed there once they have arrived.

To sum a micro-batch takes hundreds of operations on a few thousand numbers each. On a device every
one of them is a launch, which costs the training thread more than the compiled loops of the CPU
need for all of them (docs/performance.md has both, measured); a copy is one launch a tensor.
Copies go through pinned memory, behind what the device has to do already, and nothing waits for
them before the step's numbers are asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Arrival:
    """The arguments of a call, on their way.

    Attributes:
        given: the arguments, all on the host; to be read once `wait` has returned.
        events: one a GPU, reached when its copies are made.
    """

    given: Any
    events: Collection[torch.cuda.Event]

    def here(self) -> bool:
        """Whether everything has arrived, or never will; does not wait."""
        try:
            events = self.events
            return all(event.query() for event in events)  # type: ignore[no-untyped-call]  # torch
        except RuntimeError:  # of the device; whoever waits is told
            return True

    def wait(self) -> Any:
        """The arguments, once they have arrived."""
        for event in self.events:
            event.synchronize()
        return self.given


def away(values: Collection[Any]) -> bool:
    """Whether some log-probs (tensors, or lists of tensors) lie on another device."""
    try:
        return any(
            isinstance(one, Tensor) and not one.is_cpu
            for value in values
            for one in (value if isinstance(value, (list, tuple)) else (value,))
        )
    except Exception:  # noqa: BLE001  # of a tensor that is none; whoever adds it up is told
        return False


def sent(given: Any) -> Arrival:
    """Start to copy what a call was given.

    Args:
        given: its arguments: tensors, arrays, and mappings and sequences of them, on any devices.
            What is on the host is copied too, for its owner may write to it before the rest is
            there.
    """
    copies: dict[int, tuple[Any, Any]] = {}
    host = _copied(given, copies)
    devices = {value.device for value, _ in copies.values() if getattr(value, "is_cuda", False)}
    return Arrival(host, [_event(device) for device in devices])


def _copied(value: Any, copies: dict[int, tuple[Any, Any]]) -> Any:
    """The same on the host; what is given twice is copied once."""
    if isinstance(value, Mapping):
        return {name: _copied(one, copies) for name, one in value.items()}
    if not isinstance(value, (list, tuple, Tensor, np.ndarray)):
        return value
    if id(value) not in copies:
        copies[id(value)] = (value, _copy(value, copies))
    return copies[id(value)][1]


def _joins(values: Sequence[Any]) -> bool:
    """Whether these are rows on one GPU, of which one copy is made instead of one each."""
    rows = [one for one in values if isinstance(one, Tensor) and one.is_cuda and one.dim() == 1]
    return 1 < len(rows) == len(values) and len({(one.device, one.dtype) for one in rows}) == 1


def _copy(value: Any, copies: dict[int, tuple[Any, Any]]) -> Any:
    if isinstance(value, (list, tuple)):
        if _joins(value):
            lengths = [len(one) for one in value]
            return _copied(torch.cat([one.detach() for one in value]), copies).split(lengths)
        return [_copied(one, copies) for one in value]
    if isinstance(value, np.ndarray):
        return value.copy()
    pinned = value.is_cuda
    host = torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=pinned)
    return host.copy_(value.detach(), non_blocking=pinned)


def _event(device: torch.device) -> torch.cuda.Event:
    """Reached when the device has done what its present stream has to do."""
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    event.record(torch.cuda.current_stream(device))
    return event
