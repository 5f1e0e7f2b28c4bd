"""Do alerts, `explain()` and `best` ever disagree? `make sim` asks 10,000 random batches.

    python benchmarks/agreement.py --batches 10000

A disagreement is a step at which one of them names an estimator that an open alert excludes, or two
of them name different ones (`tests/numbers/test_verdicts.py`).
"""

from __future__ import annotations

import argparse
import logging
import sys

from tests.numbers.test_verdicts import disagreements


def main() -> int:
    """Print them; 0 where there are none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.getLogger("klmonitor").setLevel(logging.CRITICAL + 1)
    found, believed = disagreements(args.batches, args.seed)
    for one in found:
        print(*one)
    names = ", ".join(sorted(str(name or "neither") for name in believed))
    print(f"{len(found)} disagreements in {args.batches:,} batches; believed were {names}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
