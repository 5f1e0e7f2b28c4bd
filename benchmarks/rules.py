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
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import curves
from benchmarks.detectors import NONE_YET, Detector, Ours, detectors, false_alarms
from benchmarks.realcurves import print_curves
from klmonitor.report import PairReport, Report
from klmonitor.rules import RuleSet
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


# --- measurements ----------------------------------------------------------------------------
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
    parser.add_argument(
        "--events", type=int, default=160, help="series per event; of real curves 0 makes none"
    )
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
