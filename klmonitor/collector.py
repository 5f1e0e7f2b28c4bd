"""Collector: in a worker, log-probs in and bytes out, for a driver that watches.

    collector = Collector(name="actor-3", groups=["math"])       # in the worker
    collector.observe(policy=lp, old=olp, mask=mask)
    part = collector.take()                                      # bytes: send them as you like

    monitor.add_part(part)                                       # on the driver, before step()

No rules, record, trackers, threads or collectives live here. As with `Monitor` the first `observe`
is setup and raises; later ones are counted in what `take` gives.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from klmonitor.boundary import HealthLog
from klmonitor.numbers.receipt import by_pair
from klmonitor.pairs import POLICIES
from klmonitor.penalty import Penalty
from klmonitor.summary.observer import Observer
from klmonitor.summary.parts import pack


class Collector(Observer):
    """Sums log-probs in a process that only works.

    Args:
        name: of the worker; part of the place of its extreme tokens.
        pairs: names of the pairs to watch; None: those that the observed policies allow.
        groups: as the driver's `Monitor`'s.
        prompts: keep sums by prompt, as the driver's `Monitor`.
        penalty: the KL term of the objective, as the driver's `Monitor`; for what of its receipt
            needs ratios, returns or advantages, which the driver never sees.
        log: where an adapter counts its own failures, which travel with the parts; None: a new one.

    Raises:
        ValueError: a pair is unknown, or group names cannot be told apart.
    """

    def __init__(
        self,
        name: str = "",
        pairs: Collection[str] | None = None,
        groups: Collection[str] = (),
        prompts: bool = True,
        penalty: Penalty | Mapping[str, Penalty] | None = None,
        *,
        log: HealthLog | None = None,
    ) -> None:
        super().__init__(groups, pairs, prompts, log=log)
        self._intake.penalties = by_pair(penalty)
        self.name = name

    def take(self, phase: str = "train") -> bytes:
        """What was observed since the last time, for `Monitor.add_part`; kilobytes a pair.

        Args:
            phase: which observations, ``"train"`` or ``"eval"``.
        """
        self._land(wait=True)
        missing = tuple(name for name in POLICIES if name not in self._intake.seen)
        summary = self._intake.take(phase)
        return pack(summary, self.name, phase, self.log.read(), missing)
