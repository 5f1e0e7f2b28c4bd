"""False-positive and detection rates of the dominance rules, behind docs/dominance.md.

    python benchmarks/dominance.py                    # 24 pools a case, 120 of t4: 15 minutes
    python benchmarks/dominance.py --pools 2          # a look
    python benchmarks/dominance.py --scores           # quantiles of k3's score, for its thresholds
    python benchmarks/dominance.py --alternatives     # other statistics for k3, at 2 % each
    python benchmarks/dominance.py --few              # odd tokens that hold half of sum k3

Clean data: the families of `klmonitor.simulate.CLEAN_FAMILIES`. A pool is 2,500 contexts over 4,000
tokens with 240 draws from each, shuffled; a batch is N of its tokens, disjoint from the others.

Contamination of an estimator by z standard errors: one to three random tokens (no more than the
rule may name) get a new d, such that the batch's mean of the estimator grows by z times its clean
standard error s / sqrt(N), s being this batch's own before the change: t4 noise has no finite
variance that a population could lend. The tokens share the shift unevenly (weights uniform in
.5-1.5). For k1 the shift goes to the left or to the right with equal chances, for k3 to the right
tail, where k3 explodes. A batch is detected at a level if the rule reaches it.

Few odd tokens: j = 1 to min(16, max(1, N / 128)) random tokens get |d| = max(5 nats, 8 standard
deviations of the family's d), or up to twice that, on one side or on both by turns. A batch counts
where they hold half of sum k3; found = k3's rule reaches a level.

Rates are means over the cases; the heaviest family, uneven noise, whose few loud contexts do carry
the mean, is reported apart. Everything is seeded.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from klmonitor.numbers.dominance import (
    MOST,
    SEVERE,
    WARN,
    dominance_k1,
    dominance_k3,
    k3_score,
    most_tokens_k1,
    most_tokens_k3,
)
from klmonitor.numbers.without import Dominance
from klmonitor.simulate import CLEAN_FAMILIES, Case, sample

Floats = NDArray[np.float64]

VOCABULARY, CONTEXTS, TOKENS = 4000, 2500, 240
SIZES = (128, 256, 512, 1024, 4096, 16384, 65536)
SHIFTS = ((1, 2), (2, 3), (3, 5), (5, 8))
"""Clean standard errors by which the mean is moved."""
MOST_MOVED = 3
"""Tokens that are moved, unless told; never more than the rule may name."""
HEAVIEST = "uneven noise"
MORE_POOLS = {"t4 noise": 5}
"""Families that get a multiple of the pools: in one pool of five a single context with a huge draw
of t4 noise decides what happens to all its batches."""
MOST_TOKENS = {"k1": most_tokens_k1, "k3": most_tokens_k3}
ESTIMATORS = ("k1", "k3")


def k3(d: Floats) -> Floats:
    """expm1(d) - d."""
    return np.expm1(d) - d


def judge(d: Floats, estimator: str) -> Dominance:
    """One rule on a batch, from what a summary holds of it."""
    n = len(d)
    listed = min(MOST, n - 1)
    order = np.argpartition(d, (listed - 1, listed, n - listed - 1, n - listed))
    left, right = d[order[:listed]], d[order[-listed:]]
    tails = (-left[left < 0], right[right > 0])
    unlisted = (min(d[order[listed]], 0.0), max(d[order[-listed - 1]], 0.0))
    if estimator == "k1":
        return dominance_k1(n, -d.mean(), d.var(ddof=1), np.abs(d).sum(), *tails, unlisted=unlisted)
    x = k3(d)
    return dominance_k3(n, x.mean(), x.var(ddof=1), *tails, unlisted=unlisted)


def contaminate(
    rng: np.random.Generator,
    d: Floats,
    estimator: str,
    z: float,
    moved: tuple[int, int] | None = None,
) -> Floats:
    """A copy in which a few tokens shift the estimator's mean by z clean standard errors."""
    x = -d if estimator == "k1" else k3(d)
    fewest, most = moved or (1, min(MOST_MOVED, MOST_TOKENS[estimator](len(d))))
    count = int(rng.integers(fewest, most + 1))
    where = rng.choice(len(d), count, replace=False)
    weights = rng.uniform(0.5, 1.5, count)
    shift = z * x.std(ddof=1) * np.sqrt(len(d)) * weights / weights.sum()
    out = d.copy()
    if estimator == "k1":
        out[where] -= shift * rng.choice((-1, 1))
    else:
        out[where] = right_tail(x[where] + shift)
    return out


def right_tail(value: Floats) -> Floats:
    """The d > 0 of which k3 is `value`, by Newton's method from above."""
    d = np.minimum(np.sqrt(2 * value), np.log1p(value + np.sqrt(2 * value)))
    for _ in range(60):
        d = d - (k3(d) - value) / np.expm1(d)
    return d


def pool(case: Case, seed: int) -> Floats:
    """The d of one pool, shuffled."""
    rng = np.random.default_rng((seed, *case.name.encode()))
    drawn = sample(rng, case, sequences=CONTEXTS, tokens=TOKENS, vocabulary=VOCABULARY)
    return np.asarray(rng.permutation(drawn.d.ravel()))


def batches(tokens: Floats, size: int, most: int) -> Iterator[Floats]:
    """Disjoint batches of a pool."""
    for i in range(min(len(tokens) // size, most)):
        yield tokens[i * size : (i + 1) * size]


@dataclass
class Rates:
    """Levels and scores seen, by (size, case, what): what is "clean" or (estimator, z range)."""

    levels: dict[tuple[object, ...], list[float]]
    scores: dict[tuple[int, str], list[float]]

    def share(
        self, estimator: str, size: int, cases: list[str], what: object, level: float
    ) -> float:
        """Mean over cases of the share of batches that reach a level."""
        found = [np.mean(np.array(self.levels[estimator, size, c, what]) >= level) for c in cases]
        return float(np.mean(found))

    def batches(self, size: int, cases: list[str]) -> int:
        """Clean batches judged."""
        return sum(len(self.levels["k1", size, case, "clean"]) for case in cases)


def measure(
    pools: int,
    *,
    sizes: tuple[int, ...] = SIZES,
    clean: int = 24,
    changed: int = 6,
    more_pools: Mapping[str, int] = MORE_POOLS,
    moved: tuple[int, int] | None = None,
    seed: int = 0,
) -> Rates:
    """Judge clean and contaminated batches of every case.

    Args:
        pools: pools of tokens a case.
        sizes: N, tokens a batch.
        clean: most clean batches a pool and size.
        changed: most of them that are contaminated, for every range of z and estimator.
        more_pools: by family, what multiple of the pools it gets.
        moved: fewest and most tokens moved; None: one to three, as many as the rule may name.
        seed: of everything.
    """
    rates = Rates({}, {})
    rng = np.random.default_rng(seed + 1)
    for family, case in ((name, case) for name in CLEAN_FAMILIES for case in CLEAN_FAMILIES[name]):
        for number in range(pools * more_pools.get(family, 1)):
            tokens = pool(case, seed + number)
            for size in sizes:
                for i, d in enumerate(batches(tokens, size, clean)):
                    found = {name: judge(d, name) for name in ESTIMATORS}
                    for name in ESTIMATORS:
                        key = (name, size, case.name, "clean")
                        rates.levels.setdefault(key, []).append(found[name].level)
                    rates.scores.setdefault((size, case.name), []).append(k3_score(found["k3"]))
                    if i >= changed:
                        continue
                    for name in ESTIMATORS:
                        for low, high in SHIFTS:
                            other = contaminate(rng, d, name, rng.uniform(low, high), moved)
                            key = (name, size, case.name, (low, high))
                            rates.levels.setdefault(key, []).append(judge(other, name).level)
    return rates


@dataclass(frozen=True)
class Odd:
    """A cell of the grid of few odd tokens."""

    size: int
    tokens: int
    side: str


SIDES = {"left": (-1.0,), "right": (1.0,), "both": (1.0, -1.0)}


def odd_grid(size: int) -> Iterator[Odd]:
    """The cells of one N."""
    most = min(16, max(1, size // 128))
    for tokens in sorted({1, 2, 3, 5, 8, 12, most}):
        if tokens <= most:
            yield from (Odd(size, tokens, side) for side in SIDES)


def plant(rng: np.random.Generator, d: Floats, sd: float, cell: Odd) -> tuple[Floats, bool]:
    """A batch with odd tokens, and whether they hold half of its sum of k3."""
    where = rng.choice(len(d), cell.tokens, replace=False)
    sizes = max(5.0, 8 * sd) * (1 + rng.integers(2) * rng.uniform(0, 1, cell.tokens))
    out = d.copy()
    out[where] = sizes * np.resize(SIDES[cell.side], cell.tokens)
    values = k3(out)
    return out, bool(values[where].sum() >= values.sum() / 2)


def measure_few(
    pools: int, *, sizes: tuple[int, ...] = SIZES, batches_each: int = 4, seed: int = 0
) -> dict[Odd, dict[str, list[bool]]]:
    """Cell -> case -> whether each batch whose odd tokens hold half of sum k3 was found."""
    rng = np.random.default_rng(seed + 3)
    found: dict[Odd, dict[str, list[bool]]] = {}
    for case in (case for cases in CLEAN_FAMILIES.values() for case in cases):
        for number in range(pools):
            tokens = pool(case, seed + number)
            for cell in (cell for size in sizes for cell in odd_grid(size)):
                for _ in range(batches_each):
                    start = rng.integers(len(tokens) - cell.size + 1)
                    batch = tokens[start : start + cell.size]
                    d, holds = plant(rng, batch, float(tokens.std()), cell)
                    if holds:
                        by_case = found.setdefault(cell, {})
                        by_case.setdefault(case.name, []).append(judge(d, "k3").level >= WARN)
    return found


def found_share(found: Mapping[str, list[bool]]) -> float:
    """Mean over cases of the share found."""
    return float(np.mean([np.mean(each) for each in found.values()]))


def print_few(found: Mapping[Odd, Mapping[str, list[bool]]]) -> None:
    """The table of few odd tokens, in Markdown."""
    print("| N | odd tokens | left | right | both | worst case |")
    print("|---" * 6 + "|")
    for size, tokens in sorted({(cell.size, cell.tokens) for cell in found}):
        cells = {side: found.get(Odd(size, tokens, side), {}) for side in SIDES}
        shares = [f"{found_share(cell):.3f}" if cell else "-" for cell in cells.values()]
        worst = min(
            (float(np.mean(each)), f"{case}, {side}")
            for side, cell in cells.items()
            for case, each in cell.items()
        )
        print(f"| {size:,} | {tokens} | {' | '.join(shares)} | {worst[0]:.2f} ({worst[1]}) |")


def cases_of(*families: str) -> list[str]:
    """Names of the cases of some families, all but the heaviest by default."""
    chosen = families or tuple(name for name in CLEAN_FAMILIES if name != HEAVIEST)
    return [case.name for family in chosen for case in CLEAN_FAMILIES[family]]


def print_rates(rates: Rates) -> None:
    """The tables of docs/dominance.md, in Markdown."""
    ordinary, heaviest = cases_of(), cases_of(HEAVIEST)
    sizes = sorted({key[1] for key in rates.levels})  # type: ignore[type-var]  # the second is N
    for name in ESTIMATORS:
        for level, label in ((WARN, "warn"), (SEVERE, "severe")):
            print(f"\n### {name}, {label}\n")
            print("| N | batches | false positives | worst case | heaviest family |", end="")
            print("".join(f" {low}-{high} SE |" for low, high in SHIFTS), "worst at 3-5 SE |")
            print("|---" * (6 + len(SHIFTS)) + "|")
            for size in sizes:
                false = {c: rates.share(name, size, [c], "clean", level) for c in ordinary}
                worst = max(false, key=lambda c: false[c])
                found = [rates.share(name, size, ordinary, shift, level) for shift in SHIFTS]
                least = {c: rates.share(name, size, [c], (3, 5), level) for c in ordinary}
                hardest = min(least, key=lambda c: least[c])
                heavy = rates.share(name, size, heaviest, "clean", level)
                print(
                    f"| {size:,} | {rates.batches(size, ordinary):,} "
                    f"| {np.mean(list(false.values())):.2%} | {false[worst]:.1%} ({worst}) "
                    f"| {heavy:.1%} |",
                    "".join(f" {share:.2f} |" for share in found),
                    f"{least[hardest]:.2f} ({hardest}) |",
                )


def print_cases(rates: Rates) -> None:
    """False-positive rates by case, level warn."""
    sizes = sorted({size for size, _ in rates.scores})
    for name in ESTIMATORS:
        print(f"\n### {name}, warn, by case\n")
        print("| case |", "".join(f" {size:,} |" for size in sizes))
        print("|---" * (1 + len(sizes)) + "|")
        for case in cases_of(*CLEAN_FAMILIES):
            shares = [rates.share(name, size, [case], "clean", WARN) for size in sizes]
            print(f"| {case} |", "".join(f" {share:.1%} |" for share in shares))


def print_scores(rates: Rates) -> None:
    """The scores of k3 that 3 to .25 % of clean batches exceed, every case counting alike."""
    tails = (0.03, 0.02, 0.015, 0.01, 0.005, 0.0025)
    print("| N |", "".join(f" {tail:.2%} |" for tail in tails))
    for size in sorted({size for size, _ in rates.scores}):
        scores = [np.array(rates.scores[size, case]) for case in cases_of()]
        row = "".join(f" {weighted_quantile(scores, tail):.2f} |" for tail in tails)
        print(f"| {size:,} |{row}")


def alternatives(d: Floats) -> dict[str, float]:
    """Statistics on which a rule for k3 could stand; m as k3's rule has it."""
    n, x = len(d), k3(d)
    m = most_tokens_k3(n)
    ordered = np.sort(x)[::-1]
    top, rest = ordered[:m], ordered[m:]
    return {
        "share of sum k3 in the top m": top.sum() / x.sum(),
        "share in the largest token": ordered[0] / x.sum(),
        "V of the top m": ((top - x.mean()) ** 2).sum() / ((x - x.mean()) ** 2).sum(),
        "J of the top m": (x.mean() - rest.mean()) / (rest.std(ddof=1) / np.sqrt(n)),
        "apart: x_m / x_{m+1}": ordered[m - 1] / ordered[m],
        "largest d": float(d.max()),
        "score of the rule": k3_score(judge(d, "k3")),
    }


def print_alternatives(pools: int, seed: int, clean: int = 16, changed: int = 4) -> None:
    """Detection at 3-5 standard errors when 2 % of clean batches are flagged, by statistic."""
    rng = np.random.default_rng(seed + 2)
    found: dict[tuple[int, str, str, bool], list[float]] = {}
    for family, case in ordinary_cases():
        for number in range(pools * MORE_POOLS.get(family, 1)):
            tokens = pool(case, seed + number)
            for size in SIZES:
                for i, d in enumerate(batches(tokens, size, clean)):
                    for name, value in alternatives(d).items():
                        found.setdefault((size, case.name, name, False), []).append(value)
                    if i < changed:
                        other = contaminate(rng, d, "k3", rng.uniform(3, 5))
                        for name, value in alternatives(other).items():
                            found.setdefault((size, case.name, name, True), []).append(value)
    print("| statistic |", "".join(f" {size:,} |" for size in SIZES))
    print("|---" * (1 + len(SIZES)) + "|")
    for name in alternatives(np.linspace(-1, 1, 256)):
        row = [
            equal_rate_detection(
                [np.array(found[size, case.name, name, False]) for _, case in ordinary_cases()],
                [np.array(found[size, case.name, name, True]) for _, case in ordinary_cases()],
            )
            for size in SIZES
        ]
        print(f"| {name} |", "".join(f" {share:.2f} |" for share in row))


def ordinary_cases() -> list[tuple[str, Case]]:
    """(family, case) of all but the heaviest family."""
    return [(n, case) for n in CLEAN_FAMILIES if n != HEAVIEST for case in CLEAN_FAMILIES[n]]


def equal_rate_detection(clean: list[Floats], changed: list[Floats], rate: float = 0.02) -> float:
    """Mean detection over cases at the threshold that flags this share of clean batches."""
    threshold = weighted_quantile(clean, rate)
    return float(np.mean([np.mean(each > threshold) for each in changed]))


def weighted_quantile(samples: list[Floats], rate: float) -> float:
    """The value that this share exceeds, every sample counting alike whatever its size."""
    joined = np.concatenate(samples)
    weights = np.concatenate([np.full(len(s), 1 / len(s) / len(samples)) for s in samples])
    order = np.argsort(-joined)
    return float(joined[order][np.searchsorted(np.cumsum(weights[order]), rate)])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pools", type=int, default=24, help="pools of 600,000 tokens a case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--moved", type=int, nargs=2, help="fewest and most tokens to move")
    parser.add_argument("--scores", action="store_true", help="also quantiles of k3's score")
    parser.add_argument("--alternatives", action="store_true", help="only this comparison")
    parser.add_argument("--few", action="store_true", help="only odd tokens that hold half")
    args = parser.parse_args()
    if args.few:
        print_few(measure_few(args.pools, seed=args.seed))
        return
    if args.alternatives:
        print_alternatives(args.pools, args.seed)
        return
    start = time.perf_counter()
    rates = measure(args.pools, moved=args.moved and tuple(args.moved), seed=args.seed)
    print_rates(rates)
    print_cases(rates)
    if args.scores:
        print_scores(rates)
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
