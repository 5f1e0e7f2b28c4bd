"""A worker: log-probs that no driver sees, summed and sent as bytes.

What an adapter sees of an update it gives to `RemoteWorker.observe`. At the end of the update the
ranks whose tokens are their own send their sums to the job's mailbox; what an update that failed
has summed is thrown away, and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from klmonitor.boundary import Boundary, HealthLog, cause, say
from klmonitor.collector import Collector
from klmonitor.hooks.mailbox import Letter, Mailbox, is_timeout

GUARDED = ("loss", "update", "mailbox")


class RemoteWorker:
    """What one process sums between two letters to its driver.

    Attributes:
        log: what failed here.
        guards: a boundary a hook.
        collector: the sums; None as long as no driver has said that it wants any.
        over: whether nobody will ever want any.
        settings: what the driver has said.
    """

    def __init__(self) -> None:
        """Nothing seen; Ray and the mailbox are looked for when an update begins."""
        self.log = HealthLog()
        self.guards = {name: Boundary(f"{name}'s hook", self.log, vital=True) for name in GUARDED}
        self.collector: Collector | None = None
        self.over = False
        self.settings: Mapping[str, Any] = {}
        self._box: Mailbox | None = None
        self._observed = 0

    def update(self, original: Callable[..., Any], owner: Any, *args: Any, **kwargs: Any) -> Any:
        """Around a trainer's update of the weights: at its end the sums are sent."""
        self.guards["update"](self._begin)
        result = original(owner, *args, **kwargs)
        self.guards["update"](self._end, owner)
        return result

    def _begin(self) -> None:
        self.begin()

    def _end(self, owner: Any) -> None:
        self.end(*self._place(owner))

    def _place(self, owner: Any) -> tuple[int, int, bool]:
        """What `end` is told of whose update it is; an adapter asks the trainer's worker."""
        del owner
        return 0, 1, True

    def observe(self, **given: Any) -> None:
        """Sum a micro-batch, if anybody wants it."""
        if self.collector is not None:
            self.collector.observe(**given)
            self._observed += 1

    def begin(self) -> None:
        """An update begins."""
        if self._observed and self.collector is not None:
            self.collector.take()  # of an update that failed: its driver has given that step up
            self.log.lost()
        self._observed = 0
        if self.collector is None and not self.over:
            self.guards["mailbox"](self._introduce)

    def end(self, rank: int, ranks: int, speaks: bool) -> None:
        """An update is over.

        Args:
            rank: of this worker among those that see different tokens.
            ranks: their number.
            speaks: whether it is not another's copy that sees the same tokens.
        """
        observed, self._observed = self._observed, 0
        if self.collector is None or self._box is None or not observed:
            return
        self.collector.name = f"actor-{rank}"
        part = self.collector.take()
        if speaks:
            self.guards["mailbox"](self._send, Letter(self.collector.name, ranks, part))

    def _introduce(self) -> None:
        """Ask the driver's mailbox what is wanted."""
        try:
            self._box = Mailbox.find()
        except ValueError:  # the driver is switched off, or has said what is wrong
            self.over = True
            say("this job has no mailbox of klmonitor's: its workers are not watched")
            return
        self.settings = self._box.settings()
        if not self.settings.get("watch"):
            self.over = True
            return
        wanted = {name: self.settings.get(name) or () for name in ("groups", "pairs")}
        self.collector = Collector(
            groups=wanted["groups"],
            pairs=wanted["pairs"] or None,
            penalty=self.settings.get("penalty") or None,
            log=self.log,
        )

    def _send(self, letter: Letter) -> None:
        assert self._box is not None  # the only caller has it
        try:
            self._box.put(letter)
        except Exception as error:
            if is_timeout(error):  # it may be busy: this part alone is lost
                raise
            self.over, self.collector = True, None
            say(
                "the mailbox is gone (%s): workers are watched no more, training goes on",
                cause(error),
            )
            self.log.stop("mailbox", cause(error))


def place_among(copies: Callable[[], int]) -> tuple[int, int, bool]:
    """Of this process among torch's, of which groups in a row see the same tokens.

    Args:
        copies: processes of such a group; asked only where there are several.

    Returns:
        What `RemoteWorker.end` is told.
    """
    if not torch.distributed.is_initialized():
        return 0, 1, True
    size = copies()
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return rank // size, ranks // size, rank % size == 0
