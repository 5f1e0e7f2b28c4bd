"""How often the 95 % intervals of k1 and k3 cover the true KL on clustered tokens.

    python benchmarks/intervals.py                     # 1,000 replications, a minute

Two designs of `klmonitor.simulate.Clustering`, in which sequences differ in their KL:

    64 sequences, each its own prompt;
    64 prompts with 8 completions each, intra-class correlation of the sequences' mean k1 .3.

Every replication draws one step's tokens, deals the sequences at random to 4 ranks, summarises each
rank's part as a training process would, merges the four and reads the intervals: with the error by
prompt, by sequence, and as if all tokens were independent. The truth is the design's KL.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np
import torch

from klmonitor.numbers.assemble import pair_reports
from klmonitor.numbers.clusters import Clustered
from klmonitor.numbers.student import interval
from klmonitor.numbers.sums import StepSums, sums_of
from klmonitor.pairs import Pair
from klmonitor.simulate import ClusteredTokens, Clustering
from klmonitor.summary import batch
from klmonitor.summary.extremes import Place
from klmonitor.summary.fields import SummaryConfig
from klmonitor.summary.passes import accumulate
from klmonitor.summary.state import Summary, merge_all

RANKS = 4
PAIR = Pair("policy", "ref")
ESTIMATORS = ("k1", "k3")
DESIGNS = {
    "64 sequences": Clustering(prompts=64),
    "64 prompts x 8, correlation .3": Clustering(prompts=64, completions=8, icc=0.3),
    "4 prompts x 8, correlation .3": Clustering(prompts=4, completions=8, icc=0.3),
}


def summarise(drawn: ClusteredTokens, sequences: np.ndarray, rank: int) -> Summary:
    """The summary of a rank that got these sequences."""
    part = batch.build(
        {"policy": drawn.tokens.q[sequences], "ref": drawn.tokens.p[sequences]},
        mask=drawn.mask[sequences],
        prompt_ids=drawn.prompts[sequences],
    )
    state = Summary.empty(SummaryConfig())
    accumulate(state, part, (PAIR,), place=Place(rank=rank))
    return state


def merged(rng: np.random.Generator, drawn: ClusteredTokens) -> StepSums:
    """The pair's sums over ranks to which the sequences were dealt at random."""
    hands = np.array_split(rng.permutation(len(drawn.prompts)), RANKS)
    parts = [summarise(drawn, hand, rank) for rank, hand in enumerate(hands)]
    summary = merge_all(parts)
    return sums_of(summary.arrays, summary.config.all_groups)[PAIR.name]


def intervals(sums: StepSums, estimator: str) -> dict[str, tuple[float, float]]:
    """95 % intervals of a mean by the kind of its error."""
    values = pair_reports({PAIR.name: sums})[PAIR.name].values
    mean, n = values[f"{estimator}/mean"], values["tokens"]
    by_sequence = Clustered(sums.columns, np.zeros((0, 4))).se(estimator)
    return {
        "iid": interval(mean, math.sqrt(values[f"{estimator}/var"] / n), n),
        "by sequence": interval(mean, by_sequence, values["sequences"]),
        "by prompt": interval(mean, values[f"{estimator}/se"], values["clusters"]),
    }


def coverage(design: Clustering, replications: int, seed: int = 0) -> dict[tuple[str, str], float]:
    """(estimator, error) -> share of replications whose interval covers the truth."""
    rng = np.random.default_rng(seed)
    covered: dict[tuple[str, str], int] = {}
    for _ in range(replications):
        drawn = design.sample(rng)
        step = merged(rng, drawn)
        for estimator in ESTIMATORS:
            for error, (low, high) in intervals(step, estimator).items():
                key = (estimator, error)
                covered[key] = covered.get(key, 0) + (low <= drawn.kl <= high)
    return {key: count / replications for key, count in covered.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replications", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    errors = ("iid", "by sequence", "by prompt")
    print("| design | estimator |", "".join(f" {error} |" for error in errors))
    print("|---" * (2 + len(errors)) + "|")
    for name, design in DESIGNS.items():
        found = coverage(design, args.replications, args.seed)
        for estimator in ESTIMATORS:
            shares = "".join(f" {found[estimator, error]:.1%} |" for error in errors)
            print(f"| {name} | {estimator} |{shares}")
    print(f"\n{args.replications:,} replications, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
