"""``klmonitor read`` against parsing its JSON lines alone: memory beyond imports, and time.

    python benchmarks/reading.py [--gigabytes 1] [--pairs 3] [--tokens 1024]

Pairs of runs in fresh processes, one after the other, so that a busy machine slows both. A row is a
sequence with log-probs of three policies, ids and a mask.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

PARSE = """
import json, sys, time
began = time.perf_counter()
with open(sys.argv[1], "rb") as file:
    for line in file:
        json.loads(line)
print(time.perf_counter() - began)
"""
READ = """
import resource, sys, time, contextlib, io
import numpy, torch, klmonitor, klmonitor.monitor, klmonitor_dumps.command
from klmonitor.cli import main
began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with contextlib.redirect_stdout(io.StringIO()):
    status = main(["read", sys.argv[1], "-o", sys.argv[2], "--quiet"])
assert status == 0
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(time.perf_counter() - began, (peak - before) / 1024)
"""


def write(path: Path, size: float, tokens: int) -> int:
    """Rows until the file has so many bytes; a step has 64. The number of steps."""
    rng = np.random.default_rng(0)
    written = rows = 0
    with path.open("w") as file:
        while written < size:
            q = (-rng.exponential(0.5, tokens)).astype(np.float32)
            row: dict[str, object] = {"step": rows // 64, "prompt": rows // 8}
            for name, spread in (("old", 0.0), ("rollout", 0.02), ("ref", 0.1)):
                moved = np.minimum(q + rng.normal(0, spread, tokens).astype(np.float32), -1e-6)
                row[name] = moved.astype(np.float32).tolist()
            row["mask"] = [1] * tokens
            row["tokens"] = rng.integers(0, 150_000, tokens).tolist()
            written += file.write(json.dumps(row) + "\n")
            rows += 1
    return rows // 64 + 1


def timed(code: str, *arguments: object) -> list[float]:
    """What a fresh process prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(word) for word in done.stdout.split()]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=1024)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "dump.jsonl")
        steps = write(path, args.gigabytes * 1e9, args.tokens)
        size = path.stat().st_size
        print(f"{size / 1e9:.2f} GB, {steps} steps of 64 sequences of {args.tokens} tokens")
        ratios, peaks = [], []
        for pair in range(args.pairs):
            (alone,) = timed(PARSE, path)
            seconds, peak = timed(READ, path, Path(directory, f"run{pair}"))
            ratios.append(alone / seconds)
            peaks.append(peak)
            print(
                f"parsing alone {size / alone / 1e6:.0f} MB/s, "
                f"read {size / seconds / 1e6:.0f} MB/s, "
                f"ratio {alone / seconds:.2f}, {peak:.0f} MB beyond the imports",
                flush=True,
            )
        print(f"median ratio {statistics.median(ratios):.2f}, largest memory {max(peaks):.0f} MB")


if __name__ == "__main__":
    main()
