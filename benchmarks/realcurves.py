"""The rules and their rivals on real curves, and on residuals of these set on real start-ups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks import curves
from benchmarks.detectors import Detector, Ours, false_alarms


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
    for name, make in makers.items() if runs else ():
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
