"""What the rules of klmonitor are compared with, and how alerts on ordinary runs are counted."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import chi2

from klmonitor.replay.scoring import Summed
from klmonitor.report import Alert, Report
from klmonitor.rules import Rules, RuleSet

Detector = Callable[[Report], Sequence[str]]
"""A report -> the kinds of the alerts that it raises."""


@dataclass
class Ours:
    """The rules of klmonitor."""

    preset: Rules = "default"
    rules: RuleSet = field(init=False)
    alerts: tuple[Alert, ...] = ()
    score: float = math.nan

    def __post_init__(self) -> None:
        self.rules = RuleSet(self.preset)

    def __call__(self, report: Report) -> Sequence[str]:
        """The kinds that open or get worse."""
        judgement = self.rules.judge(report)
        self.alerts = judgement.alerts
        self.score = judgement.scores.get("policy_ref", math.nan)
        return [alert.kind for alert in self.alerts]


@dataclass
class RollingZ:
    """Mean and standard deviation of the last 100 values, the current one left out."""

    past: deque[float] = field(default_factory=lambda: deque(maxlen=100))
    quiet: int = 0

    def __call__(self, report: Report) -> Sequence[str]:
        """One kind, at most once in 100 steps."""
        value = report.pairs["policy_ref"]["k3/mean"]
        past = np.array(self.past)
        self.past.append(value)
        self.quiet -= 1
        if past.size < 20 or self.quiet > 0 or not value > past.mean() + 3 * past.std():
            return ()
        self.quiet = 100
        return ("z",)


@dataclass
class AbsoluteLevel:
    """One alert whenever k3 has risen above a level."""

    nats: float = 0.5
    above: bool = False

    def __call__(self, report: Report) -> Sequence[str]:
        """One kind, when it goes above."""
        before, self.above = self.above, report.pairs["policy_ref"]["k3/mean"] > self.nats
        return ("level",) if self.above and not before else ()


def rlwatch_detector() -> Callable[[], Detector] | None:
    """A maker of rlwatch's KL detector behind its alert manager; None if not installed."""
    try:
        from rlwatch import alerts as rlwatch_alerts
        from rlwatch.config import RLWatchConfig
        from rlwatch.detectors import DetectorSuite
    except ImportError:
        return None
    rlwatch_alerts._log_alert_console = lambda alert, run_id: None  # it prints every alert

    @dataclass
    class Rlwatch:
        suite: object = field(default_factory=lambda: DetectorSuite(RLWatchConfig()))
        manager: object = field(
            default_factory=lambda: rlwatch_alerts.AlertManager(RLWatchConfig().alerts)
        )

        def __call__(self, report: Report) -> Sequence[str]:
            """What its alert manager lets through."""
            value = report.pairs["policy_ref"]["k3/mean"]
            raised = self.suite.check_step(report.step, kl_divergence=value)
            return [alert.detector for alert in raised if self.manager.send(alert)]

    return Rlwatch


def detectors() -> dict[str, Callable[[], Detector]]:
    """All that are compared: name -> maker of a fresh one."""
    makers: dict[str, Callable[[], Detector]] = {
        "default": Ours,
        "quiet": lambda: Ours("quiet"),
        "sensitive": lambda: Ours("sensitive"),
        "rolling z": RollingZ,
        "level .5": AbsoluteLevel,
    }
    rival = rlwatch_detector()
    if rival is not None:
        makers["rlwatch 0.5.1"] = rival
    return makers


@dataclass(frozen=True)
class FalseAlarms(Summed):
    """Alerts on runs without an event.

    Attributes:
        alerts: kind -> count.
        steps: steps judged.
        early: alerts in the first 150 steps of a run.
        runs: runs judged.
    """

    alerts: Counter[str]
    steps: int
    early: int
    runs: int

    def count(self, kinds: frozenset[str] | None = None) -> int:
        """Alerts of these kinds, or of all."""
        return sum(n for kind, n in self.alerts.items() if kinds is None or kind in kinds)

    def rate(self, kinds: frozenset[str] | None = None) -> float:
        """Alerts per 10,000 steps."""
        return 1e4 * self.count(kinds) / self.steps

    def bound(self, kinds: frozenset[str] | None = None) -> float:
        """Upper end of the one-sided 95 % Poisson interval of `rate`."""
        return 1e4 * float(chi2.ppf(0.95, 2 * (self.count(kinds) + 1))) / 2 / self.steps


NONE_YET = FalseAlarms(Counter(), 0, 0, 0)


def false_alarms(make: Callable[[], Detector], runs: Iterator[Iterator[Report]]) -> FalseAlarms:
    """Count the alerts on runs without an event."""
    alerts: Counter[str] = Counter()
    steps = early = n = 0
    for run in runs:
        n += 1
        detector = make()
        for t, report in enumerate(run):
            steps += 1
            kinds = detector(report)
            alerts.update(kinds)
            early += len(kinds) * (t < 150)
    return FalseAlarms(alerts, steps, early, n)
