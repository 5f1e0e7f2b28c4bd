"""Simulate k1, k2, k3 and the control variate where the truth is known: bias, noise, coverage.

For a case of a given KL the expectations and standard deviations are exact sums; batches of
independent tokens drawn from it show what one sees.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from klmonitor.simulate.study import Study

NAME = "simulate"
CASES = ("gaussian", "zipf", "heavy-p", "collapse", "top-p", "stale", "temperature")
SCHEMA = "klmonitor.simulate/1"
ROUNDING = 1e-9
"""Of sums: a smaller bias is none."""
HEAD = ("estimator", "bias", "sd/KL", "of mean", "median", "< 0", "coverage", "top token")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--case", choices=CASES, default="gaussian", help="default: gaussian")
    parser.add_argument("--kl", type=float, default=0.01, help="nats per token (default: .01)")
    parser.add_argument(
        "--batch", default="256,4096", metavar="N,...", help="tokens (default: 256,4096)"
    )
    parser.add_argument("--batches", type=int, default=400, help="of each size (default: 400)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument("--plot", metavar="FILE", help="write an SVG: the tangent, sd by lambda")


def run(args: argparse.Namespace) -> int:
    """Simulate and print; 2 where the case cannot be had."""
    from klmonitor.simulate.picture import svg
    from klmonitor.simulate.study import study
    from klmonitor.simulate.worlds import make_pool

    try:
        sizes = [int(part) for part in args.batch.split(",")]
        if min(sizes) < 2 or args.batches < 2:
            raise ValueError("--batch and --batches: give 2 at least")
        pool = make_pool(args.case, args.kl, args.seed)
        found = study(pool, sizes, batches=args.batches, seed=args.seed)
        if args.plot:
            Path(args.plot).write_text(svg(pool), encoding="utf-8")
    except (ValueError, OSError) as error:
        sys.stderr.write(f"klmonitor simulate: {error}\n")
        return 2
    if args.json:
        body = {
            "schema": SCHEMA,
            "case": found.case,
            "kl": found.kl,
            "best_lambda": found.best_lambda,
            "batches": found.batches,
            "seed": args.seed,
            "outcomes": found.rows(),
        }
        print(json.dumps(body, indent=1))
    else:
        _tell(found)
    return 0


def _tell(found: Study) -> None:
    from klmonitor.simulate.worlds import EXPLAINED

    print(
        f"{found.case}, KL {found.kl:.4g} nats per token: {EXPLAINED[found.case]}\n"
        "bias, sd of one token, sd of a batch's mean and median of the batches' means are in units "
        f"of the KL; bias and sd are exact,\nthe rest is of {found.batches} batches. "
        "cv is -d + lambda (r - 1): lambda 0 is k1, lambda 1 is k3, the best is "
        f"{found.best_lambda:.3g}"
    )
    for tokens in dict.fromkeys(outcome.tokens for outcome in found.outcomes):
        print(f"\n{tokens} tokens a batch")
        print("  " + "".join(f"{name:>11}" for name in HEAD))
        for one in found.outcomes:
            if one.tokens == tokens:
                sizes = (one.bias, one.sd, one.sd_of_mean, one.median)
                shares = [size / found.kl for size in sizes]
                cells = [f"{x:.3g}" if abs(x) > ROUNDING else "0" for x in shares]
                cells += [f"{x:.1%}" for x in (one.negative, one.coverage, one.top_share)]
                print("  " + "".join(f"{cell:>11}" for cell in (one.estimator, *cells)))
