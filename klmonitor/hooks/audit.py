"""Audits: now and then the logits of a few positions, where sampled tokens only estimate.

Every `every` steps, on every rank at the same step, logits of policy and reference at some sampled
positions are had by forward passes without gradient, in evaluation mode: no random number is drawn
and no parameter moves. What they tell is added to the step's sums (`klmonitor.summary.audited`).

The main rank measures what that costs, and makes audits rarer until they take a hundredth of the
training time at most. When the next one is travels with the step's collective, so that no rank
waits for another.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor

from klmonitor.hooks.reference import kept_random_state
from klmonitor.monitor import Monitor
from klmonitor.summary.audited import audit_sums, audited

Batch = TypeVar("Batch")
CHUNK = 16
"""Positions whose logits are held at once: 10 MB a policy for a vocabulary of 152,000."""
SHARE = 0.01
"""Of the training time that audits may take."""
MEMORY = 0.1
"""Weight of the newest step in the mean time of a step."""

Logits = Callable[[Batch, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(batch, rows [n], columns [n] of its completions) -> logits of policy and reference, [n, V]."""


class Audit(Generic[Batch]):
    """Looks at a batch when it is time.

    Attributes:
        every: steps between audits, at least.
        passes: audits so far, on this rank.
        seconds: what they took in all.
        next: the step of the next one; None: not known yet.
        share: of the training time that one takes at the present rate; nan before the first.
    """

    def __init__(
        self,
        monitor: Monitor,
        pair: str,
        logits: Logits[Batch],
        *,
        every: int,
        positions: int,
        rows: int,
        temperature: float = 1.0,
        main: bool = True,
        seed: int = 0,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Nothing is looked at yet.

        Args:
            monitor: gets the sums, and carries the next step to all ranks.
            pair: whose KL it is.
            logits: gives those of a batch.
            every: steps between audits, at least.
            positions: of an audit, on each rank.
            rows: sequences of a forward pass, at most.
            temperature: all logits are divided by it.
            main: whether this rank decides.
            seed: of the choice of positions, another one on every rank.
            say: gets the line that tells the cost.
        """
        self.every, self.passes, self.seconds = every, 0, 0.0
        self.next: int | None = None
        self.share = math.nan
        self._monitor, self._pair, self._logits = monitor, pair, logits
        self._positions, self._rows, self._temperature = positions, rows, temperature
        self._main, self._seed, self._say = main, seed, say
        self._last = 0
        self._cost = self._spent = 0.0
        self._told = False
        self._step_seconds = math.nan
        self._ended = math.nan

    # --- a batch -----------------------------------------------------------------------------
    def due(self, step: int) -> bool:
        """Whether the batch of a step is looked at; alike on every rank."""
        if self.next is None:
            self.next = step + self.every - 1
        return step >= self.next

    def look(self, batch: Batch, mask: Tensor, token_ids: Tensor, step: int) -> None:
        """Add what the logits of a batch tell to the sums of its step.

        Args:
            batch: what the trainer generated.
            mask: [B, T] which tokens count.
            token_ids: [B, T] the tokens that were drawn.
            step: the optimizer step that trains on it.
        """
        started = time.perf_counter()
        self._last, self.next = step, step + self.every
        places = self._chosen(mask, step)
        penalty = self._monitor.penalties.get(self._pair)
        found = []
        with torch.no_grad(), kept_random_state(token_ids.device):
            for some in chunks(places, self._rows):
                rows, columns = some.to(token_ids.device).unbind(1)
                policy, ref = self._logits(batch, rows, columns)
                drawn = token_ids[rows, columns]
                found.append(audited(policy, ref, drawn, penalty, self._temperature))
        if found:
            sums = audit_sums(torch.cat(found, dim=1), places[:, 0])
            self._monitor.add_audit(self._pair, sums)
        self._cost = self._spent = time.perf_counter() - started
        self.seconds += self._cost
        self.passes += 1

    def _chosen(self, mask: Tensor, step: int) -> Tensor:
        """int64 [n, 2] rows and columns on the host, in order; by a generator of our own."""
        counted = (mask != 0).nonzero().cpu()
        generator = torch.Generator().manual_seed(1_000_003 * step + self._seed)
        order = torch.randperm(len(counted), generator=generator)[: self._positions]
        return counted[order.sort().values]

    # --- a step's end ------------------------------------------------------------------------
    def before_step(self) -> None:
        """What this rank sends with the step's collective."""
        now = time.perf_counter()
        took, self._ended = now - self._ended - self._spent, now
        self._spent, usual = 0.0, self._step_seconds
        self._step_seconds = took if math.isnan(usual) else usual + MEMORY * (took - usual)
        self._monitor.offer = float(self._wanted()) if self._main else -math.inf

    def _wanted(self) -> int:
        """The step of the next audit, so that they take no more than their share."""
        if not self._cost:
            return self.next or 0
        if not self._step_seconds > 0:  # the first step of all: what one takes is not known
            return self._last + self.every
        cost, self._cost = self._cost, 0.0
        interval = max(self.every, math.ceil(cost / (SHARE * self._step_seconds)))
        self.share = cost / (interval * self._step_seconds)
        if not self._told:
            self._told = True
            self._say(
                f"an audit took {1e3 * cost:.0f} ms; one in {interval} steps is {self.share:.1%} "
                f"of the training time (audit_every = {self.every})"
            )
        return self._last + interval

    def after_step(self) -> None:
        """Take what the main rank has sent."""
        if math.isfinite(self._monitor.agreed) and self._monitor.agreed > 0:
            self.next = int(self._monitor.agreed)

    def describe(self) -> str:
        """One line."""
        if not self.passes:
            return f"  audit   {self._positions} positions of {self._pair}, none yet"
        mean = 1e3 * self.seconds / self.passes
        return (
            f"  audit   {self._positions} positions of {self._pair}, {self.passes} so far of "
            f"{mean:.0f} ms, the next at step {self.next}"
        )


def chunks(places: Tensor, rows: int) -> Iterator[Tensor]:
    """Places [n, 2], sorted by row, in stretches of `CHUNK` at most and of so many rows at most."""
    start = 0
    while start < len(places):
        some = places[start : start + CHUNK]
        distinct = (some[1:, 0] != some[:-1, 0]).cumsum(0)
        size = 1 + int((distinct < rows).sum())
        yield some[:size]
        start += size
