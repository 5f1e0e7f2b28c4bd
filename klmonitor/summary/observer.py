"""How `Monitor` and `Collector` take log-probs: one method, its boundary, and the first call."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from klmonitor.boundary import Boundary, HealthLog
from klmonitor.summary.arrivals import Arrival, away, sent
from klmonitor.summary.batch import TensorLike
from klmonitor.summary.extras import Version
from klmonitor.summary.groups import Group
from klmonitor.summary.intake import Intake, Known, PromptIds


class Observer:
    """Takes micro-batches.

    Args:
        groups: names of data sets or environments to report apart; others are ``other``.
        pairs: names of the pairs to watch; None: those that the observed policies allow.
        prompts: keep sums by prompt.
        strict: raise instead of counting failures.
        log: where an adapter counts already; None: a new one.

    Attributes:
        log: what failed or was lost so far, in this process; an adapter's boundaries count here.

    Raises:
        ValueError: a pair is unknown, or group names cannot be told apart.
    """

    def __init__(
        self,
        groups: Collection[str],
        pairs: Collection[str] | None,
        prompts: bool,
        strict: bool = False,
        log: HealthLog | None = None,
    ) -> None:
        self.log = HealthLog() if log is None else log
        self._enabled = os.environ.get("KLMONITOR_DISABLE", "0") in ("", "0")
        self._intake = Intake(groups, pairs, prompts, self.log)
        self._boundary = Boundary("observe", self.log, vital=True, strict=strict)
        self._sending = Boundary(
            "copying log-probs to the host", self.log, vital=True, strict=strict
        )
        self._coming: deque[Arrival] = deque()
        self._observed = False

    @property
    def active(self) -> bool:
        """Whether log-probs are taken: not where KLMONITOR_DISABLE is set or `observe` rests."""
        return self._enabled and not (self._boundary.resting or self._sending.resting)

    def observe(
        self,
        *,
        mask: TensorLike | Mapping[str, TensorLike | None] | None = None,
        token_ids: TensorLike | None = None,
        prompt_ids: PromptIds | None = None,
        cu_seqlens: TensorLike | None = None,
        sequence_ids: TensorLike | None = None,
        group: Group = None,
        phase: str = "train",
        entropy: TensorLike | None = None,
        version: Version = None,
        current_version: int | None = None,
        advantages: TensorLike | None = None,
        beta: float | None = None,
        **log_probs: TensorLike | None,
    ) -> None:
        """Add one micro-batch; never synchronises with the device.

        Log-probs on a GPU are copied to the host, with all that is given with them, behind what
        the GPU has to do already, and summed there by a later call, `step` at the latest.

        Args:
            log_probs: ``policy=``, ``old=``, ``rollout=``, ``ref=``: log-probs of the sampled
                tokens, nats, at least two of them, in a layout of `klmonitor.summary.batch.build`.
            mask: which tokens count, same layout; or pair -> mask, which also says which pairs are
                compared (tokens that are rejected count for one pair and not for another).
            token_ids: vocabulary ids, same layout; to name the extreme tokens.
            prompt_ids: [B] integers or strings: completions of one prompt are not independent.
            cu_seqlens: [B + 1] offsets, for packed tokens.
            sequence_ids: [N] integers, for packed tokens.
            group: the micro-batch's group, or one name a sequence, or int64 [B] indices into the
                declared groups (any other index: ``other``).
            phase: ``"train"`` or ``"eval"``; the two are never mixed.
            entropy: nats, of every token's position over the whole vocabulary, same layout: of
                `old` where it is given, else of `policy`, under the temperature of its log-probs.
            version: the number of weight updates in the weights that sampled, one integer or [B].
            current_version: the trainer's; None: the largest version seen.
            advantages: of each sequence, [B], or of each token, same layout.
            beta: weight of the KL term here, where it changes; None: its `Penalty`'s.

        Raises:
            ValueError: at the first call: shapes, masks or layouts do not fit.
            TypeError: at the first call: a dtype or a policy's name is wrong.
        """
        if not self._enabled or not self._open():
            return
        layout: dict[str, Any] = {
            "mask": mask,
            "token_ids": token_ids,
            "cu_seqlens": cu_seqlens,
            "sequence_ids": sequence_ids,
        }
        known = (entropy, version, current_version, advantages, beta)
        given = (log_probs, layout, prompt_ids, group, phase, known)
        far = away(log_probs.values())
        if not self._observed:  # setup
            self._observed = True
            self._add(sent(given).wait() if far else given)
        elif far or self._coming:  # what comes behind others is added behind them
            arrival = self._sending(sent, given)
            if arrival is not None:
                self._coming.append(arrival)
            self._land(wait=False)
        else:
            self._boundary(self._add, given)
            if self._sending.failing:
                self._sending.always(_nothing)  # nothing is copied any more

    def _land(self, wait: bool) -> None:
        """Add the micro-batches that have arrived from a GPU, in their order.

        Args:
            wait: for all that are on their way.
        """
        while self._coming and (arrival := self._first(wait)) is not None:
            self._boundary(self._added, arrival)

    def _first(self, wait: bool) -> Arrival | None:
        """The next that has arrived, or will; None: there is none."""
        try:
            return self._coming.popleft() if wait or self._coming[0].here() else None
        except IndexError:  # another thread may have taken it
            return None

    def _added(self, arrival: Arrival) -> None:
        self._add(arrival.wait())

    def _add(self, given: Sequence[Any]) -> None:
        """Add one micro-batch from this process's place."""
        log_probs, layout, prompt_ids, group, phase, known = given
        rank, world = self._place()
        self._intake.add(
            log_probs, layout, prompt_ids, group, phase, rank, Known(*known), alone=world == 1
        )

    def _open(self) -> bool:
        """Whether anything is taken at all, at present."""
        return True

    def _place(self) -> tuple[int, int]:
        """This process's number among those whose summaries are reduced, and how many they are."""
        return 0, 1


def _nothing() -> None:
    """What succeeds."""
