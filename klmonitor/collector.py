"""Collector: in a worker, log-probs in and bytes out, for a driver that watches.

    collector = Collector(name="actor-3", groups=["math"])       # in the worker
    collector.observe(policy=lp, old=olp, mask=mask)
    part = collector.take()                                      # bytes: send them as you like

    monitor.add_part(part)                                       # on the driver, before step()

No rules, record, trackers, threads or collectives live here. As with `Monitor` the first `observe`
is setup and raises; later ones are counted in what `take` gives.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from klmonitor.boundary import Boundary, HealthLog
from klmonitor.pairs import POLICIES
from klmonitor.summary.batch import TensorLike
from klmonitor.summary.extras import Version
from klmonitor.summary.intake import Group, Intake, Known, PromptIds
from klmonitor.summary.parts import pack


class Collector:
    """Sums log-probs in a process that only works.

    Args:
        name: of the worker; part of the place of its extreme tokens.
        pairs: names of the pairs to watch; None: those that the observed policies allow.
        groups: as the driver's `Monitor`'s.
        prompts: keep sums by prompt, as the driver's `Monitor`.

    Raises:
        ValueError: a pair is unknown, or group names cannot be told apart.
    """

    def __init__(
        self,
        name: str = "",
        pairs: Sequence[str] | None = None,
        groups: Sequence[str] = (),
        prompts: bool = True,
    ) -> None:
        self.name = name
        self._intake = Intake(groups, pairs, prompts)
        self._enabled = os.environ.get("KLMONITOR_DISABLE", "0") in ("", "0")
        self._log = HealthLog()
        self._boundary = Boundary("observe", self._log, vital=True)
        self._set_up = False

    def observe(
        self,
        *,
        mask: TensorLike | None = None,
        token_ids: TensorLike | None = None,
        prompt_ids: PromptIds | None = None,
        cu_seqlens: TensorLike | None = None,
        sequence_ids: TensorLike | None = None,
        group: Group = None,
        phase: str = "train",
        entropy: TensorLike | None = None,
        version: Version = None,
        current_version: int | None = None,
        **log_probs: TensorLike | None,
    ) -> None:
        """Add one micro-batch; arguments and errors as for `Monitor.observe`."""
        if not self._enabled:
            return
        layout = {
            "mask": mask,
            "token_ids": token_ids,
            "cu_seqlens": cu_seqlens,
            "sequence_ids": sequence_ids,
        }
        known = Known(entropy, version, current_version)
        if not self._set_up:
            self._set_up = True
            self._intake.add(log_probs, layout, prompt_ids, group, phase, 0, known)
        else:
            self._boundary(self._intake.add, log_probs, layout, prompt_ids, group, phase, 0, known)

    def take(self, phase: str = "train") -> bytes:
        """What was observed since the last time, for `Monitor.add_part`; kilobytes a pair.

        Args:
            phase: which observations, ``"train"`` or ``"eval"``.
        """
        missing = tuple(name for name in POLICIES if name not in self._intake.seen)
        summary = self._intake.take(phase)
        return pack(summary, self.name, phase, self._log.read(), missing)
