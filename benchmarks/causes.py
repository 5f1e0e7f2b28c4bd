"""How often each cause is named, and how often wrongly: the confusion matrix of docs/causes.md.

    python benchmarks/causes.py                 # about four minutes
    python benchmarks/causes.py --seeds 1       # a look

Every engine of `klmonitor.simulate.engines` runs five steps in every world of `WORLDS` (vocabulary,
prompts, tokens a step, the engine's noise); what the monitor's `Causes` say after the fifth is
counted. Without entropies what only surprise can see must come out as no cause. Seeded.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from klmonitor.numbers.assemble import pair_reports
from klmonitor.numbers.causes import STEPS, Causes
from klmonitor.numbers.sums import sums_of
from klmonitor.report import PairReport
from klmonitor.simulate.engines import ENGINES, Engine, step, world
from klmonitor.summary.intake import Intake, Known

World = tuple[int, int, int, float, int]
WORLDS: tuple[World, ...] = (
    # vocabulary, prompts, tokens a step, noise, contexts
    (300, 2, 4096, 0.03, 192),
    (300, 16, 1024, 0.1, 192),
    (800, 64, 4096, 0.01, 192),
    (3000, 8, 4096, 0.1, 96),
    (3000, 16, 65536, 0.05, 96),
    (50_000, 8, 4096, 0.02, 32),
)
POLICIES = ("rollout", "old", "ref")
PAIR = "rollout_old"
NAMED_ALIKE: Mapping[str, tuple[str, ...]] = {
    "narrower": ("narrower, scored raw", "colder, scored raw", "cut, scored raw"),
    "wider": ("warmer, scored raw",),
    "placeholder": ("impossible",),
}
"""The cause of an engine -> names that say it; else the name itself."""


def named(seed: int, at: World, engine: Engine, *, entropies: bool = True) -> PairReport:
    """The report of rollout_old after five steps, with its cause."""
    vocabulary, prompts, tokens, noise, contexts = at
    rng = np.random.default_rng(seed)
    where = world(
        rng, vocabulary=vocabulary, prompts=prompts, tokens=tokens, noise=noise, contexts=contexts
    )
    intake, causes = Intake(), Causes()
    for _ in range(STEPS):
        given = step(rng, where, engine)
        log_probs = {name: getattr(given, name).astype(np.float32) for name in POLICIES}
        known = Known(given.entropy if entropies else None, given.version)
        intake.add(log_probs, {}, given.prompt, None, "train", 0, known)
        summary = intake.take("train")
        sums = sums_of(summary.arrays, summary.config.all_groups)
        pairs = causes.name(sums, pair_reports(sums), advance=True)
    return pairs[PAIR]


def confusion(
    seeds: Iterable[int], worlds: Iterable[World] = WORLDS, *, entropies: bool = True
) -> dict[str, Counter[str]]:
    """Engine -> how often each cause was named."""
    found: dict[str, Counter[str]] = {name: Counter() for name in ENGINES}
    worlds = tuple(worlds)
    for number, seed in enumerate(seeds):
        for name, (_, engine) in ENGINES.items():
            for i, at in enumerate(worlds):
                where = named(1000 * seed + 100 * number + i, at, engine, entropies=entropies)
                found[name][where.cause.name] += 1
    return found


def is_right(engine: str, cause: str, *, entropies: bool = True) -> bool:
    """Whether a named cause is the engine's; "" is right for a clean one, or one unseen."""
    right, _ = ENGINES[engine]
    if right in ("narrower", "wider") and not entropies:
        return cause == ""
    return cause in NAMED_ALIKE.get(right, (right,))


def print_confusion(found: Mapping[str, Counter[str]], *, entropies: bool) -> None:
    """A line an engine, in Markdown."""
    print("| engine | named right | otherwise |")
    print("|---|---|---|")
    for engine, counts in found.items():
        total = sum(counts.values())
        right = sum(n for name, n in counts.items() if is_right(engine, name, entropies=entropies))
        others = {
            name or "(none)": n
            for name, n in counts.items()
            if not is_right(engine, name, entropies=entropies)
        }
        said = ", ".join(f"{name} {n / total:.1%}" for name, n in others.items()) or "-"
        print(f"| {engine} | {right / total:.1%} of {total} | {said} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=6)
    args = parser.parse_args()
    start = time.perf_counter()
    for entropies in (True, False):
        print(f"\n### With{'' if entropies else 'out'} entropies\n")
        seeds = range(args.seeds if entropies else max(args.seeds // 3, 1))
        print_confusion(confusion(seeds, entropies=entropies), entropies=entropies)
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
