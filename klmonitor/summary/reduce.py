"""Over ranks: one sum, one max, one gather; then one copy to the host.

The number of collectives of a step is constant, whatever was watched and however many micro-batches
each rank had. A rank that saw nothing takes part with an empty summary of the same shape. The
configuration, which decides that shape, is compared once, before the first reduction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from klmonitor.summary.fields import N_ORDER, N_SEQUENCE_ORDER, SummaryConfig
from klmonitor.summary.state import Summary, first_of

Ranks = dist.ProcessGroup
COLLECTIVES_PER_STEP = 3
AVAILABLE = dist.is_available()
"""Whether torch was built with it."""


def default_ranks() -> Ranks | None:
    """The default process group, None where torch.distributed is not initialised."""
    return dist.group.WORLD if AVAILABLE else None


def rank_of(group: Ranks | None) -> int:
    """This process's rank in the group, 0 without one."""
    return 0 if group is None else dist.get_rank(group)


def communication_device(group: Ranks | None) -> torch.device:
    """Where tensors must be for the group's collectives."""
    if group is not None and "nccl" in str(dist.get_backend(group)):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def agree(config: SummaryConfig, group: Ranks | None) -> None:
    """Compare the configuration over the ranks (one collective of a fixed size).

    Raises:
        ValueError: a rank has other settings; reducing their summaries would hang or be wrong.
    """
    if group is None:
        return
    digest = hashlib.sha256(repr(config).encode()).digest()
    mine = torch.tensor([int.from_bytes(digest[:7], "big")], device=communication_device(group))
    all_of_them = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(all_of_them, mine, group=group)
    values = [int(value) for value in all_of_them]
    different = [rank for rank, value in enumerate(values) if value != values[0]]
    if different:
        raise ValueError(
            f"ranks {different} are configured differently from rank 0: give every rank the same "
            f"groups, prompt_buckets and top (this rank: {config})"
        )


Flags = Sequence[float] | Tensor
"""Values of which every rank learns the largest; a tensor once they have travelled."""


def reduce_over(group: Ranks | None, summary: Summary, flags: Flags) -> tuple[Summary, Flags]:
    """Merge the summaries of all ranks; every rank gets the result.

    Args:
        group: None: nothing to do.
        summary: this rank's.
        flags: values of which every rank learns the largest.

    Returns:
        The merged summary and the largest flags. The extreme tokens carry their rank, so the order
        of ties does not depend on the order of arrival.
    """
    if group is None:
        return summary, flags
    device = communication_device(group)
    summary = summary.to(device).clone()
    local = torch.as_tensor(flags, dtype=torch.float64, device=device)
    dist.all_reduce(summary.flat, dist.ReduceOp.SUM, group=group)
    largest = torch.cat([summary.maxima.flatten(), local])
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    maxima, flags = largest[: summary.maxima.numel()], largest[summary.maxima.numel() :]
    mine = torch.cat([summary.tokens.flatten(), summary.sequences.flatten()])
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, mine, group=group)
    tokens, sequences = [], []
    for part in everyone:
        tokens.append(part[: summary.tokens.numel()].view_as(summary.tokens))
        sequences.append(part[summary.tokens.numel() :].view_as(summary.sequences))
    top = summary.config.top
    merged = Summary(
        summary.config,
        flat=summary.flat,
        maxima=maxima.view_as(summary.maxima),
        tokens=first_of(torch.cat(tokens, dim=-2), top, N_ORDER),
        sequences=first_of(torch.cat(sequences, dim=-2), top, N_SEQUENCE_ORDER),
    )
    return merged, flags


@dataclass
class HostCopy:
    """A summary on its way to the host: through pinned memory, without blocking, on CUDA."""

    summary: Summary
    flags: Flags
    event: torch.cuda.Event | None = None

    @classmethod
    def start(cls, summary: Summary, flags: Flags) -> HostCopy:
        """Start copying; on the CPU the summary itself is the copy."""
        if not summary.flat.is_cuda:
            return cls(summary, flags)
        host = Summary(
            summary.config,
            *(
                torch.empty_like(part, device="cpu", pin_memory=True).copy_(part, non_blocking=True)
                for part in (summary.flat, summary.maxima, summary.tokens, summary.sequences)
            ),
        )
        if isinstance(flags, Tensor):
            pinned = torch.empty_like(flags, device="cpu", pin_memory=True)
            flags = pinned.copy_(flags, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        event.record()
        return cls(host, flags, event)

    def wait(self) -> tuple[Summary, Sequence[float]]:
        """The summary and the flags on the host."""
        if self.event is not None:
            self.event.synchronize()
        flags: Flags = self.flags
        return self.summary, flags.tolist() if isinstance(flags, Tensor) else flags
