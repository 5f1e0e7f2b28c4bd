"""Time klmonitor where log-probs are on a GPU: `make bench-gpu`, on a machine that has one.

What a call costs the training thread, without waiting for the device, and a step of the demo with
its model there. Writes `benchmarks/RESULTS_GPU.md`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks import speed
from klmonitor import Monitor, Penalty
from klmonitor.summary.passes import TOKENS

TARGET = Path(__file__).parent / "RESULTS_GPU.md"
SIZES = ((16, 256), (64, 1024), (512, 2048))
"""Sequences and tokens of each."""
MICRO_BATCHES = 4
"""Of a step, where calls are timed."""
STEPS = 25


def calls() -> list[str]:
    """What `observe` and `step` cost the host, and how many kernels and copies they launch."""
    loader = TOKENS.loader
    assert loader is not None
    loader.wait(300)
    lines = [
        "| tokens | layout | observed | observe, host ms | step, host ms | all of a step of "
        f"{MICRO_BATCHES} | launches of an observe |",
        "|---|---|---|---|---|---|---|",
    ]
    for (rows, columns), packed, much in itertools.product(SIZES, (False, True), (False, True)):
        given = _observed(rows, columns, packed, much)
        penalty = Penalty("k3", placed="loss", ratio="differentiated", beta=0.04)
        monitor = Monitor(penalty=penalty if much else None, rules={}, strict=True)
        observe, step = [], []
        for number in range(STEPS):
            for _ in range(MICRO_BATCHES):
                torch.cuda.synchronize()
                started = time.perf_counter()
                monitor.observe(**given)
                observe.append(time.perf_counter() - started)
            torch.cuda.synchronize()
            started = time.perf_counter()
            monitor.step(number)
            step.append(time.perf_counter() - started)
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
        ) as profile:
            monitor.observe(**given)
            torch.cuda.synchronize()
        launched = sum(
            e.count
            for e in profile.key_averages()
            if "LaunchKernel" in e.key or "cudaMemcpyAsync" in e.key
        )
        monitor.close()
        mine, closing = (1e3 * statistics.median(x[len(x) // 5 :]) for x in (observe, step))
        lines.append(
            f"| {rows} x {columns} | {'packed' if packed else '[B, T]'} "
            f"| {'4 policies, ids, prompts, entropies, advantages, a KL term' if much else '2'} "
            f"| {mine:.2f} | {closing:.2f} | {MICRO_BATCHES * mine + closing:.1f} | {launched} |"
        )
    return lines


def _observed(rows: int, columns: int, packed: bool, much: bool) -> dict[str, Any]:
    """What `observe` is given."""
    q, p, mask = speed.tokens(rows, columns)
    given = {"policy": q, "ref": p, "mask": mask}
    if much:
        given |= {
            "old": q + 0.01 * torch.randn_like(q),
            "rollout": q + 0.02 * torch.randn_like(q),
            "token_ids": torch.randint(0, 50_000, q.shape),
            "entropy": torch.rand_like(q),
            "advantages": torch.randn_like(q),
        }
    if packed:
        given = {name: x.flatten() for name, x in given.items()}
        given["cu_seqlens"] = columns * torch.arange(rows + 1)
    if much:
        given["prompt_ids"] = torch.arange(rows) // 8
    return {name: x.cuda() for name, x in given.items()}


def demo() -> list[str]:
    """Our own part of the demo's step with its model on the GPU, as `speed.overhead` times it."""
    rows = [
        "| | without, ms | with, ms | inside our hooks, ms | of the rest of a step "
        "| the record's thread, ms |",
        "|---|---|---|---|---|---|",
    ]
    for name, config in speed.SETTINGS.items():
        rows.append(speed._overhead(name, {**config, "use_cpu": False}, False))
    return rows


def main() -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=TARGET)
    arguments = parser.parse_args()
    lines = [
        "# On a GPU",
        "",
        f"{time.strftime('%Y-%m-%d')}, {torch.cuda.get_device_name()}, {os.cpu_count()} CPU cores, "
        f"torch {version('torch')}; `make bench-gpu` writes this.",
        "",
    ]
    for part in (calls, demo):
        lines += [*part(), ""]
        arguments.out.write_text("\n".join(lines))
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
