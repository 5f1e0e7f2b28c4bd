"""Is the estimate at lambda unbiased, is its error the smallest, and does its interval hold?

    python benchmarks/mixture.py                      # 2,500 steps a case, a quarter of an hour
    python benchmarks/mixture.py --steps 100          # a look

Cases of `klmonitor.simulate.CASES` whose tokens q drew. Every sequence of a step is one context,
so sequences are clusters. The bias is the mean over all steps of the estimate less the exact KL of
the step's own contexts (a sum over the vocabulary), in errors of the estimate at one step; the
intervals are for all contexts, and the truth is the exact KL of all that were drawn. The plain one
is mean +- t error; the upper end of the other is on a log scale, as a KL is positive.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np
import torch

from klmonitor.numbers.assemble import pair_reports
from klmonitor.numbers.student import interval
from klmonitor.numbers.sums import sums_of
from klmonitor.simulate import CASES, Case, sample
from klmonitor.summary.intake import Intake

ON_POLICY = tuple(c for c in CASES if c.name not in ("top-p .95", "stale sampler", "collapse"))
"""Of "collapse" the tokens that matter hardly come: no estimate from a step's tokens is right."""
VOCABULARY = 500
NAMES = ("k1", "k3", "cv")


@dataclass(frozen=True)
class Mixture:
    """What was measured of a case, by estimator (`NAMES`).

    Attributes:
        bias: mean of the estimate less the exact KL, in errors of the estimate at one step.
        bias_error: standard error of that.
        error: standard deviation over steps, nats.
        coverage: share of steps whose plain 95 % interval holds the truth.
        positive: the same of the interval for what is positive.
    """

    bias: dict[str, float]
    bias_error: dict[str, float]
    error: dict[str, float]
    coverage: dict[str, float]
    positive: dict[str, float]

    @property
    def ratio(self) -> float:
        """Error of cv over the smaller of k1's and k3's."""
        return self.error["cv"] / min(self.error["k1"], self.error["k3"])


def measure(case: Case, sequences: int, tokens: int, steps: int, seed: int = 0) -> Mixture:
    """Many steps of one case."""
    rng = np.random.default_rng((seed, sequences, *case.name.encode()))
    rows, exact = [], []
    for _ in range(steps):
        size = {"sequences": sequences, "tokens": tokens, "vocabulary": VOCABULARY}
        drawn = sample(rng, case, **size, exact=True)
        intake = Intake(prompts=False)
        intake.add({"policy": drawn.q, "ref": drawn.p}, {}, None, None, "train", 0)
        summary = intake.take("train")
        values = pair_reports(sums_of(summary.arrays, ("other",)))["policy_ref"].values
        rows.append([[values[f"{name}/{what}"] for what in ("mean", "se")] for name in NAMES])
        exact.append(drawn.kl.mean())
    table, kl = np.array(rows), np.array(exact)  # [steps, NAMES, 2], [steps]
    off = table[..., 0] - kl[:, None]
    error = table[..., 0].std(axis=0, ddof=1)
    held = [
        [
            np.mean([low <= kl.mean() <= high for low, high in (
                interval(mean, se, sequences, positive=positive) for mean, se in estimates.tolist()
            )])
            for estimates in table.swapaxes(0, 1)
        ]
        for positive in (False, True)
    ]  # fmt: skip
    columns = (off.mean(0) / error, off.std(0, ddof=1) / error / steps**0.5, error, *np.array(held))
    return Mixture(*(dict(zip(NAMES, column.tolist(), strict=True)) for column in columns))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2500)
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    columns = ("case", "sequences x tokens", "bias k1", "bias k3", "bias cv", "error / the better")
    columns += (*(f"coverage {name}" for name in NAMES), "of cv's positive interval")
    print("|", " | ".join(columns), "|")
    print("|---" * len(columns) + "|")
    for sequences, tokens in ((64, 64), (16, 32)):
        for case in ON_POLICY:
            found = measure(case, sequences, tokens, args.steps)
            shown = (
                f"{sequences} x {tokens}",
                *(f"{found.bias[n]:+.3f} +- {found.bias_error[n]:.3f}" for n in NAMES),
                f"{found.ratio:.2f}",
                *(f"{share:.3f}" for share in found.coverage.values()),
                f"{found.positive['cv']:.3f}",
            )
            print("|", " | ".join((case.name, *shown)), "|", flush=True)
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
