"""Over ranks: one sum, one max, one gather.

The number of collectives of a step is constant, whatever was watched and however many micro-batches
each rank had. A rank that saw nothing takes part with an empty summary of the same shape. The
configuration, which decides that shape, is compared once, before the first reduction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from klmonitor.summary import around
from klmonitor.summary.fields import N_SEQUENCE_ORDER, SummaryConfig
from klmonitor.summary.state import Summary, first_of, first_tokens

Ranks = dist.ProcessGroup
COLLECTIVES_PER_STEP = 3
"""Sums, maxima, and what is ordered."""
PATIENT = timedelta(days=1)
"""The time-out of our own group: longer than that of training, whose own collectives tell."""
AVAILABLE = dist.is_available()
"""Whether torch was built with it."""


def default_ranks() -> Ranks | None:
    """The default process group, None where torch.distributed is not initialised."""
    return dist.group.WORLD if AVAILABLE else None


def rank_of(group: Ranks | None) -> int:
    """This process's rank in the group, 0 without one."""
    return 0 if group is None else dist.get_rank(group)


def world_of(ranks: Ranks | None) -> int:
    """How many processes there are, 1 without ranks."""
    return 1 if ranks is None else dist.get_world_size(ranks)


UNKNOWN = -1
"""The digest of a rank that has none."""


class DisagreementError(ValueError):
    """Ranks are configured differently: reducing their summaries would hang or be wrong."""


class Reducer:
    """Reduces the summaries of some ranks; once they disagree, never again.

    Every rank makes one at its first step and takes part in each reduction, with a flag and an
    empty summary where it cannot make its own. They travel through a gloo group of our own, so
    that nothing of ours comes between training's collectives and no host tensor is given to NCCL.

    Args:
        config: what decides the shape of a summary.
        ranks: whose summaries; None: this process's alone.
        flags: how many values each rank sends beside its summary.

    Attributes:
        alone: whether there is nobody to reduce with.
        off: why nothing is reduced any more; empty: all is well.
    """

    def __init__(self, config: SummaryConfig, ranks: Ranks | None, flags: int = 0) -> None:
        self.alone, self.off = ranks is None, ""
        self._config, self._ranks, self._flags = config, ranks, flags
        self._group: Ranks | None = None
        self._buffers: _Buffers | None = None
        self._agreed = ranks is None
        self._sent = 0

    def agree(self, digest: Callable[[], int]) -> None:
        """Compare the configurations of all ranks, once; a collective of a fixed size.

        Args:
            digest: gives that of this rank's configuration, 56 bits.

        Raises:
            DisagreementError: a rank has other settings; on every rank alike.
        """
        if self._agreed or self._ranks is None:
            return
        self._agreed = True
        own = dist.new_group(
            dist.get_process_group_ranks(self._ranks),
            timeout=PATIENT,
            backend="gloo",
            use_local_synchronization=True,
        )
        world = dist.get_world_size(own)
        mine = torch.tensor([UNKNOWN], device="cpu")
        everyone = [torch.empty_like(mine) for _ in range(world)]
        failure: Exception | None = None
        try:
            buffers = _Buffers(self._config, world, self._flags)
            mine[0] = digest()
        except Exception as error:  # noqa: BLE001  # all are told by the digest that is missing
            failure = error
        dist.all_gather(everyone, mine, group=own)
        digests = [int(one[0]) for one in everyone]
        different = [rank for rank, one in enumerate(digests) if one != digests[0] or one < 0]
        if different:
            self.off = (
                f"ranks {different} are configured differently from rank 0: give every rank the "
                f"same groups, prompts and klmonitor (this rank: {self._config})"
            )
            raise DisagreementError(self.off) from failure
        self._group, self._buffers = own, buffers

    def begin(self) -> None:
        """A step begins: none of its collectives is done."""
        self._sent = 0

    def attend(self) -> None:
        """Take part, with nothing, in what a failed step has left undone: others wait there.

        Raises:
            DisagreementError: as by `agree`, which this rank never reached.
        """
        if not self._agreed:
            self.agree(lambda: UNKNOWN)
        if self._buffers is not None and not self.off:
            if not self._sent:
                self._buffers.empty()
            self._send(self._buffers)

    def reduce(
        self, make: Callable[[], tuple[Summary, Sequence[float]]]
    ) -> tuple[Summary, Sequence[float], Exception | None]:
        """Merge the summaries of all ranks; every rank gets the result.

        Args:
            make: gives this rank's summary, and values of which every rank learns the
                largest; where it raises, this rank sends an empty one.

        Returns:
            The merged summary; the largest values, and after them whether a rank had no summary;
            what `make` raised. The extreme tokens carry their rank, so the order of ties does not
            depend on the order of arrival.
        """
        assert self._buffers is not None  # whoever is alone need not ask
        buffers, failure = self._buffers, None
        try:
            buffers.load(*make())
        except Exception as error:  # noqa: BLE001  # the others wait for this rank
            failure = error
            buffers.empty()
        self._send(buffers)
        return *buffers.merged(), failure

    def _send(self, buffers: _Buffers) -> None:
        """The collectives of a step that are not done; between them nothing is allocated."""
        while self._sent < COLLECTIVES_PER_STEP:
            self._sent += 1
            if self._sent == 1:
                dist.all_reduce(buffers.flat, dist.ReduceOp.SUM, group=self._group)
            elif self._sent == 2:
                dist.all_reduce(buffers.largest, dist.ReduceOp.MAX, group=self._group)
            else:
                dist.all_gather(buffers.everyone, buffers.mine, group=self._group)


class _Buffers:
    """What travels: had at setup, written to at each step."""

    def __init__(self, config: SummaryConfig, world: int, flags: int) -> None:
        with torch.inference_mode(False):
            self._blank = Summary.empty(config)
            self.flat = torch.from_numpy(self._blank.whole())
            self.largest = torch.zeros(
                self._blank.maxima.numel() + flags + 1, dtype=torch.float64, device="cpu"
            )
            beside = torch.zeros(around.shape(config.top), dtype=torch.float32, device="cpu")
            self._beside = beside.numel() // 2  # two float32 in the place of a float64
            parts = (
                self._blank.tokens,
                self._blank.sequences,
                beside.flatten().view(torch.float64),
            )
            self.mine = torch.cat([part.flatten() for part in parts])
            self._blank_mine = self.mine.clone()
            self.everyone = [torch.empty_like(self.mine) for _ in range(world)]

    def load(self, summary: Summary, flags: Sequence[float]) -> None:
        """Take a summary and its flags in."""
        maxima, tokens = summary.maxima.numel(), summary.tokens.numel()
        self.flat.copy_(torch.from_numpy(summary.whole()))
        self.largest[:maxima].copy_(summary.maxima.flatten())
        self.largest[maxima:-1].copy_(torch.tensor(flags, dtype=torch.float64, device="cpu"))
        self.largest[-1] = 0.0
        self.mine[:tokens].copy_(summary.tokens.flatten())
        self.mine[tokens : -self._beside].copy_(summary.sequences.flatten())
        beside = None if summary.around is None else summary.around.tensor
        if beside is None:
            self.mine[-self._beside :].zero_()
        else:
            self.mine[-self._beside :].view(torch.float32).copy_(beside.flatten())

    def empty(self) -> None:
        """Take nothing in, and say so."""
        self.flat.zero_()
        self.largest.fill_(-torch.inf)
        self.largest[-1] = 1.0
        self.mine.copy_(self._blank_mine)

    def merged(self) -> tuple[Summary, list[float]]:
        """The summary of all, in memory of its own, and the flags."""
        blank, top = self._blank, self._blank.config.top
        cut, end = blank.tokens.numel(), blank.maxima.numel()
        tokens = [part[:cut].view_as(blank.tokens) for part in self.everyone]
        sequences = [part[cut : -self._beside].view_as(blank.sequences) for part in self.everyone]
        size = around.shape(top)
        beside = [part[-self._beside :].view(torch.float32).view(size) for part in self.everyone]
        kept, neighbours = first_tokens(tokens, beside, top)
        summary = Summary.of_whole(
            blank.config,
            self.flat.numpy(),
            self.largest[:end].clone().view_as(blank.maxima).numpy(),
            kept.numpy(),
            first_of(torch.cat(sequences, dim=-2), top, N_SEQUENCE_ORDER).numpy(),
        )
        summary.around = neighbours
        return summary, self.largest[end:].tolist()
