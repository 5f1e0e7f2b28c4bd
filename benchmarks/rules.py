"""False alarms and detections of the alert rules on simulated runs, with two rivals beside them.

    python benchmarks/rules.py                  # about 120,000 ordinary steps, 160 series per event
    python benchmarks/rules.py --runs 5 --events 40
    python benchmarks/rules.py --series DIR     # real curves, see benchmarks/curves.py

The series are those of `klmonitor.testing`; every number is seeded. Rivals get the same k3, one
number a step: a rolling z-score (100 steps, z > 3, one alert per 100 steps), an absolute level (0.5
nats), and rlwatch where it is installed (`pip install rlwatch==0.5.1`), its KL detector with its
own cool-down and cap.

Reported: alerts per 10,000 steps on runs without an event, with the upper end of the one-sided 95 %
Poisson interval; the share of events found (an alert within 5 steps of a spike, 100 of a step, a
runaway or a fast drift, 300 of a slow drift) and the median delay in steps.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from benchmarks import curves
from klmonitor.report import Alert, PairReport, Report
from klmonitor.rules import Rules, RuleSet
from klmonitor.testing import (
    BATCHES,
    EVENTS,
    FAMILIES,
    Series,
    TokenArrays,
    batch_report,
    kl_series,
    reports,
    step,
    token_batch,
)

Floats = NDArray[np.float64]

NULLS = ("flat", "rise", "warmup", "walk", "varying")
"""Families that count as ordinary; the oscillation and the start-up ramp are reported apart."""
WITHIN = {"spike": 5, "step": 100, "runaway": 100, "drift x2 in 50": 100, "drift": 300}
"""Steps within which an event must be found, by the beginning of its name; the first match wins."""
EVENT_AT = 1200
LEVEL_RULES = frozenset({"spike", "shift", "drift", "runaway"})

Detector = Callable[[Report], Sequence[str]]
"""A report -> the kinds of the alerts that it raises."""


# --- detectors -------------------------------------------------------------------------------
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


# --- measurements ----------------------------------------------------------------------------
@dataclass(frozen=True)
class FalseAlarms:
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

    def __add__(self, other: FalseAlarms) -> FalseAlarms:
        return FalseAlarms(
            self.alerts + other.alerts,
            self.steps + other.steps,
            self.early + other.early,
            self.runs + other.runs,
        )


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


def null_runs(family: str, series: int, seed: int, steps: int = 2000) -> Iterator[Iterator[Report]]:
    """Ordinary runs of a family."""
    for i in range(series):
        yield reports(kl_series(family, steps=steps, seed=seed + i))


def within(event: str) -> int:
    """Steps within which an event must be found."""
    return next(steps for name, steps in WITHIN.items() if event.startswith(name))


def detections(
    make: Callable[[], Detector], events: Sequence[str], series: int, seed: int
) -> dict[str, list[tuple[int, str] | None]]:
    """Delay and kind of the first alert after each event, None where there is none.

    The runs up to the event are judged once and shared by all events.
    """
    found: dict[str, list[tuple[int, str] | None]] = {event: [] for event in events}
    for i in range(series):
        family = NULLS[i % len(NULLS)]
        ordinary = kl_series(family, steps=EVENT_AT + 300, at=EVENT_AT, seed=seed + i)
        detector = make()
        for report in list(reports(ordinary))[:EVENT_AT]:
            detector(report)
        for event in events:
            run = kl_series(family, event, steps=EVENT_AT + 300, at=EVENT_AT, seed=seed + i)
            found[event].append(first_alert(copy.deepcopy(detector), run, EVENT_AT, within(event)))
    return found


def first_alert(detector: Detector, run: Series, start: int, steps: int) -> tuple[int, str] | None:
    """Delay and kind of the first alert of a run within some steps of an event."""
    for report in list(reports(run))[start : start + steps]:
        kinds = detector(report)
        if kinds:
            return report.step - start, kinds[0]
    return None


def on_the_ramp(
    make: Callable[[], Detector], factor: float, at: int, series: int, seed: int
) -> tuple[float, float]:
    """Share of jumps on a start-up ramp found within 5 steps, and alerts before them, per run."""
    hits = before = 0
    for i in range(series):
        run = kl_series("ramp", step(factor), steps=at + 5, at=at, seed=seed + i)
        detector = make()
        raised = [report.step for report in reports(run) for _ in detector(report)]
        hits += any(t >= at for t in raised)
        before += sum(t < at for t in raised)
    return hits / series, before / series


@dataclass(frozen=True)
class Pool:
    """Tokens of exact on-policy pairs, to draw ordinary batches from.

    Attributes:
        log_q: (tokens,) log-probs under q.
        log_p: (tokens,) log-probs under p.
    """

    log_q: Floats
    log_p: Floats


POOLS: dict[str, Callable[[Floats, np.random.Generator], Floats]] = {
    "noise .1": lambda z, rng: z + rng.normal(0, 0.1, z.shape),
    "noise 1": lambda z, rng: z + rng.normal(0, 1, z.shape),
    "uneven .05": lambda z, rng: z + 0.05 * rng.normal(size=z.shape) * _scale(z, rng),
    "uneven .2": lambda z, rng: z + 0.2 * rng.normal(size=z.shape) * _scale(z, rng),
    "t4 .05": lambda z, rng: z + 0.05 * rng.standard_t(4, z.shape),
    "t4 .2": lambda z, rng: z + 0.2 * rng.standard_t(4, z.shape),
    "temperature .9": lambda z, rng: z / 0.9,
    "temperature 1.3": lambda z, rng: z / 1.3,
}
"""Clean families: the logits of q -> those of p."""


def _scale(logits: Floats, rng: np.random.Generator) -> Floats:
    """One log-normal scale a context."""
    return np.exp(rng.normal(size=(len(logits), 1)))


def pool(family: str, seed: int, contexts: int = 2000, vocabulary: int = 1000) -> Pool:
    """Draw 1,000 tokens from each of some Zipf-like contexts, in random order."""
    rng = np.random.default_rng([seed, *family.encode()])
    log_q, log_p = [], []
    for _ in range(contexts // 50):
        exponent = np.clip(np.exp(rng.normal(1.15, 0.75, (50, 1))), 1.05, 14)
        logits = -exponent * np.log(np.arange(1, vocabulary + 1))
        logits = logits + rng.normal(0, 0.5, logits.shape)
        q, p = (
            x - np.logaddexp.reduce(x, 1)[:, None] for x in (logits, POOLS[family](logits, rng))
        )
        edges = np.cumsum(np.exp(q), axis=1)
        for i in range(50):
            ids = np.minimum(np.searchsorted(edges[i], rng.random(1000)), vocabulary - 1)
            log_q.append(q[i, ids])
            log_p.append(p[i, ids])
    order = rng.permutation(contexts * 1000)
    return Pool(np.concatenate(log_q)[order], np.concatenate(log_p)[order])


def clean_batches(tokens: Pool, steps: int, seed: int, sequences: int = 32) -> Iterator[Report]:
    """Whole reports of ordinary batches, so that the rules on tokens have their say."""
    rng = np.random.default_rng(seed)
    shape = (sequences, 64)
    for t in range(steps):
        chosen = rng.integers(0, tokens.log_q.size, shape)
        batch = TokenArrays(
            log_q=tokens.log_q[chosen],
            log_p=tokens.log_p[chosen],
            mask=np.arange(64) < rng.integers(32, 65, (sequences, 1)),
            token_ids=np.zeros(shape, dtype=np.int64),
        )
        yield batch_report(batch, t)


# --- real curves -----------------------------------------------------------------------------
def print_curves(
    makers: dict[str, Callable[[], Detector]], directory: Path, labels: Path, runs: int
) -> None:
    """Alerts on real curves, and on their residuals set on their own start-ups."""
    found = curves.load(directory, labels)
    steps = sum(len(curve.kl) for curve in found)
    spikes = {(curve.name, at): f for curve in found for at, f in curve.spikes().items()}
    print(f"{len(found)} curves, {steps:,} steps, {len(spikes)} spikes of 3x and more in hindsight")
    for name, make in makers.items():
        alerts, false, told = Counter[str](), Counter[str](), set()
        for curve in found:
            detector = make() if curve.per_token else without_norm(make())
            for at, kind, severity, since in replayed(detector, curve):
                alerts[kind] += 1
                told.add((curve.name, at))
                if not curve.happened(since):
                    false[severity] += 1
                    if isinstance(detector, Ours):
                        print(f"  false: {curve.name} step {at}: {severity} {kind}")
        shares = " ".join(
            f"{sum(f >= x for k, f in spikes.items() if k in told)}/"
            f"{sum(f >= x for f in spikes.values())} of {x}x"
            for x in (8, 4, 3)
        )
        print(
            f"{name:14s} {1e4 * alerts.total() / steps:5.1f} alerts per 10,000, false "
            f"{dict(false)}; at the step: {shares}; {dict(alerts.most_common())}"
        )
    missed = [(k, f) for k, f in spikes.items() if f >= 4 and k not in ours_told(found)]
    for (name, at), factor in missed:
        print(f"  missed by default: {name} step {at}, {factor:.1f}x")
    parts = curves.taken_apart(found)
    of_all = np.array([curves.measured(one) for one in parts])
    for title, column in zip(("spread", "q99.5", "AR(1)"), of_all.T, strict=True):
        low, middle, high = np.quantile(column, (0.1, 0.5, 0.9))
        print(f"residuals of log k3, {title}: {low:.2f} {middle:.2f} {high:.2f} (10, 50, 90 %)")
    for name, make in makers.items():
        print_bootstrapped(name, make, parts, runs)


def replayed(detector: Detector, curve: curves.Curve) -> Iterator[tuple[int, str, str, int]]:
    """Step, kind, severity of each alert, and the step at which its event began."""
    for report in curve.reports():
        kinds = detector(report)
        if isinstance(detector, Ours):
            for alert in detector.alerts:
                since = alert.since if alert.phase == "worse" else alert.step
                yield report.step, alert.kind, alert.severity, since
        else:
            yield from ((report.step, kind, "warn", report.step) for kind in kinds)


def without_norm(detector: Detector) -> Detector:
    """A detector for sums over a sequence, for which a norm per token means nothing."""
    if isinstance(detector, Ours) and isinstance(detector.preset, str):
        return Ours({"preset": detector.preset, "limit": False})
    return detector


def ours_told(found: Sequence[curves.Curve]) -> set[tuple[str, int]]:
    """Curve and step of every alert of the default rules."""
    return {(curve.name, at) for curve in found for at, *_ in replayed(Ours(), curve)}


def print_bootstrapped(
    name: str, make: Callable[[], Detector], parts: Sequence[curves.Parts], runs: int
) -> None:
    """False alarms and detections on bootstrapped residuals."""
    calm = (curves.as_reports(curves.bootstrapped(parts, 400, seed)) for seed in range(runs))
    rate = false_alarms(make, calm)
    cells = [f"{event} {trial_share(make, parts, event, runs):.2f}" for event in curves.TRIALS]
    print(
        f"{name:14s} bootstrapped residuals: false {rate.rate():.1f} <= {rate.bound():.1f} per "
        f"10,000 {dict(rate.alerts)}; {', '.join(cells)}"
    )


def trial_share(
    make: Callable[[], Detector], parts: Sequence[curves.Parts], event: str, runs: int
) -> float:
    """Share of bootstrapped runs in which an event is told in time."""
    trial, hits = curves.TRIALS[event], 0
    for seed in range(runs):
        k3 = curves.bootstrapped(parts, trial.at + trial.within, seed, trial)
        detector = make()
        raised = [report.step for report in curves.as_reports(k3) if detector(report)]
        hits += any(at >= trial.at for at in raised)
    return hits / runs


# --- the report ------------------------------------------------------------------------------
def print_false_alarms(makers: dict[str, Callable[[], Detector]], series: int, seed: int) -> None:
    """Rates per family, pooled over the ordinary ones, and by kind."""
    print(f"\nFalse alarms per 10,000 steps, {series} runs of 2,000 steps per family (95 % bound)")
    for name, make in makers.items():
        pooled, cells = NONE_YET, []
        for family in FAMILIES:
            found = false_alarms(make, null_runs(family, series, seed))
            if family in NULLS:
                pooled += found
            cells.append(f"{family} {found.rate():.1f}")
        print(f"{name:14s} {'  '.join(cells)}")
        print(
            f"{'':14s} pooled over {', '.join(NULLS)}: {pooled.rate():.2f} <= {pooled.bound():.2f}"
            f" in {pooled.steps:,} steps; level rules alone {pooled.rate(LEVEL_RULES):.2f} <= "
            f"{pooled.bound(LEVEL_RULES):.2f}; by kind {dict(pooled.alerts.most_common())}"
        )


def print_detections(makers: dict[str, Callable[[], Detector]], series: int, seed: int) -> None:
    """Share found and median delay per event."""
    print(f"\nShare of events found / median delay in steps, {series} series per event")
    for name, make in makers.items():
        found = detections(make, list(EVENTS), series, seed)
        print(name)
        for event, first in found.items():
            hits = [hit for hit in first if hit is not None]
            delay = f"{np.median([hit[0] for hit in hits]):.0f}" if hits else "-"
            at_once = sum(hit[0] == 0 for hit in hits) / len(first)
            kinds = dict(Counter(hit[1] for hit in hits).most_common())
            print(
                f"  {event:20s} {len(hits) / len(first):.3f} / {delay:>3s}   at once "
                f"{at_once:.3f}   first by {kinds}"
            )


def print_ramp(makers: dict[str, Callable[[], Detector]], series: int, seed: int) -> None:
    """Jumps while a run starts up."""
    print(f"\nJumps on a start-up ramp, found within 5 steps (alerts before it, per run), {series}")
    for name, make in makers.items():
        cells = []
        for factor, at in ((30, 30), (4, 60), (10, 60)):
            share, before = on_the_ramp(make, factor, at, series, seed)
            cells.append(f"x{factor} at {at}: {share:.3f} ({before:.3f})")
        calm = false_alarms(make, null_runs("ramp", series, seed, steps=150))
        print(
            f"{name:14s} {'   '.join(cells)}   without a jump: {calm.early / calm.runs:.3f} alerts "
            "per run in 150 steps"
        )


def print_tokens(runs: int, seed: int, steps: int = 1000) -> None:
    """All rules on whole reports of clean batches."""
    print(
        f"\nAll default rules on clean batches of 1,500 tokens, {runs} runs of {steps} steps each"
    )
    pooled = NONE_YET
    for family in POOLS:
        batches = (clean_batches(pool(family, seed + i), steps, seed + i) for i in range(runs))
        found = false_alarms(Ours, batches)
        pooled += found
        print(f"{family:16s} {found.rate():5.1f} per 10,000; {dict(found.alerts.most_common())}")
    print(f"{'pooled':16s} {pooled.rate():5.1f} <= {pooled.bound():.1f} in {pooled.steps:,} steps")


def print_pathologies(seeds: int) -> None:
    """Which rules a single bad batch fires, at the first step of a run and without history."""
    print(f"\nKinds raised by one batch of 64 x 256 tokens, in {seeds} seeds")
    for name in BATCHES:
        kinds: Counter[str] = Counter()
        for seed in range(seeds):
            batch = token_batch(name, sequences=64, length=256, vocabulary=128, seed=seed)
            kinds.update(set(Ours()(batch_report(batch))))
        print(f"{name:18s} {dict(kinds.most_common())}")


def print_cost(steps: int = 3000) -> None:
    """Time of `judge` with two pairs, early and late in a run."""
    rules, times = RuleSet(), []
    first = list(reports(kl_series("flat", steps=steps)))
    second = list(reports(kl_series("rise", steps=steps)))
    for one, other in zip(first, second, strict=True):
        pairs = {**one.pairs, "rollout_old": other.pairs["policy_ref"]}
        pairs["rollout_old"] = PairReport("rollout_old", pairs["rollout_old"].values)
        report = Report(step=one.step, pairs=pairs)
        start = time.perf_counter()
        rules.judge(report)
        times.append(time.perf_counter() - start)
    early, late = np.median(times[450:950]) * 1e6, np.median(times[-500:]) * 1e6
    print(f"\njudge(), two pairs: {early:.0f} us a step after 450 steps, {late:.0f} us at the end")


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", type=Path, help="a directory of real curves; only these")
    parser.add_argument("--labels", type=Path, default=curves.LABELS, help="what happened in them")
    parser.add_argument("--runs", type=int, default=12, help="ordinary runs per family")
    parser.add_argument("--events", type=int, default=160, help="series per event")
    parser.add_argument("--seed", type=int, default=1000, help="first seed")
    parser.add_argument("--only", nargs="*", help="detectors to run, by name")
    args = parser.parse_args()
    makers = {
        name: make for name, make in detectors().items() if not args.only or name in args.only
    }
    if args.series:
        print_curves(makers, args.series, args.labels, args.events)
        return
    print_cost()
    print_ramp(makers, args.events, args.seed)
    print_false_alarms(makers, args.runs, args.seed)
    print_detections(makers, args.events, args.seed + 10_000)
    print_tokens(max(args.runs // 4, 1), args.seed)
    print_pathologies(3)


if __name__ == "__main__":
    main()
