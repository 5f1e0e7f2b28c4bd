"""Is the estimate at lambda unbiased, is its error the smallest, and does its interval hold?

    python benchmarks/mixture.py                      # 400 steps a case, about a minute

Cases of `klmonitor.simulate.CASES` whose tokens q drew. Every sequence of a step is one context,
so sequences are clusters. The truth of a case is the mean of k1, which is unbiased, over all steps.
The bias is the mean of cv - k1 over all steps, in errors of cv at one step.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np
import torch

from klmonitor.numbers.assemble import pair_reports
from klmonitor.numbers.student import interval
from klmonitor.numbers.sums import StepSums
from klmonitor.simulate import CASES, Case, sample
from klmonitor.summary.intake import Intake

ON_POLICY = tuple(c for c in CASES if c.name not in ("top-p .95", "stale sampler", "collapse"))
"""Of "collapse" the tokens that matter hardly come: no estimate from a step's tokens is right."""
VOCABULARY = 500
NAMES = ("k1", "k3", "cv")


@dataclass(frozen=True)
class Mixture:
    """What was measured of a case.

    Attributes:
        bias: mean of cv - k1 over the steps, in errors of cv at one step.
        bias_error: standard error of that.
        error: estimator -> standard deviation over steps, nats.
        coverage: estimator -> share of steps whose 95 % interval holds the truth.
    """

    bias: float
    bias_error: float
    error: dict[str, float]
    coverage: dict[str, float]

    @property
    def ratio(self) -> float:
        """Error of cv over the smaller of k1's and k3's."""
        return self.error["cv"] / min(self.error["k1"], self.error["k3"])


def measure(case: Case, sequences: int, tokens: int, steps: int, seed: int = 0) -> Mixture:
    """Many steps of one case."""
    rng = np.random.default_rng((seed, sequences, *case.name.encode()))
    rows = []
    for _ in range(steps):
        drawn = sample(rng, case, sequences=sequences, tokens=tokens, vocabulary=VOCABULARY)
        intake = Intake(prompts=False)
        intake.add({"policy": drawn.q, "ref": drawn.p}, {}, None, None, "train", 0)
        summary = intake.take("train")
        values = pair_reports(StepSums(summary.arrays, ("other",)))["policy_ref"].values
        rows.append([[values[f"{name}/{what}"] for what in ("mean", "se")] for name in NAMES])
    table = np.array(rows)  # [steps, NAMES, 2]
    truth = table[:, 0, 0].mean()
    difference = table[:, 2, 0] - table[:, 0, 0]
    held = {
        name: float(
            np.mean([low <= truth <= high for low, high in
                     (interval(mean, se, sequences) for mean, se in table[:, i].tolist())])
        )
        for i, name in enumerate(NAMES)
    }  # fmt: skip
    error = table[:, 2, 0].std(ddof=1)
    return Mixture(
        float(difference.mean() / error),
        float(difference.std(ddof=1) / error / steps**0.5),
        {name: float(table[:, i, 0].std(ddof=1)) for i, name in enumerate(NAMES)},
        held,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    columns = ("case", "sequences x tokens", "bias", "its error", "error / the better")
    print("|", " | ".join((*columns, *(f"coverage {name}" for name in NAMES))), "|")
    print("|---" * (len(columns) + len(NAMES)) + "|")
    for sequences, tokens in ((64, 64), (16, 32)):
        for case in ON_POLICY:
            found = measure(case, sequences, tokens, args.steps)
            shown = (
                f"{sequences} x {tokens}",
                f"{found.bias:+.3f}",
                f"{found.bias_error:.3f}",
                f"{found.ratio:.2f}",
                *(f"{share:.3f}" for share in found.coverage.values()),
            )
            print("|", " | ".join((case.name, *shown)), "|", flush=True)
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
