"""Time the passes on a GPU: `python -m benchmarks.gpu`, on a machine that has one.

Contenders of a size run in turn, each on several copies of the tokens so that none is read from the
second-level cache; times are of CUDA events. What a call of `observe` costs the host is timed
without waiting for the device. Writes a table in Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks import speed
from klmonitor import Monitor, Penalty
from klmonitor.pairs import default_pairs
from klmonitor.summary import chunked, triton_pass
from klmonitor.summary.batch import TokenBatch, build
from klmonitor.summary.extremes import Place
from klmonitor.summary.fields import SummaryConfig
from klmonitor.summary.passes import KERNELS, accumulate
from klmonitor.summary.state import Summary

TARGET = Path(__file__).parent / "RESULTS_GPU.md"
SIZES = {**speed.SIZES, 67_108_864: (16_384, 4096)}
RESIDENT = 256 * 2**20
"""Bytes of the copies of a batch together: several times the second-level cache."""
SECONDS = 1.0
"""Of a contender at a size."""
MICRO_BATCHES = 4
"""Of a step, where calls are timed."""


def copies(rows: int, columns: int, dtype: torch.dtype) -> list[TokenBatch]:
    """The same made-up tokens, at several places in memory."""
    q, p, mask = (x.cuda() for x in speed.tokens(rows, columns))
    number = max(2, min(64, RESIDENT // (q.numel() * (2 * dtype.itemsize + 1))))
    return [
        build({"policy": q.to(dtype, copy=True), "ref": p.to(dtype, copy=True)}, mask=mask.clone())
        for _ in range(number)
    ]


def contenders() -> dict[str, Callable[[TokenBatch], object]]:
    """Name -> what is timed on one batch."""
    state = Summary.empty(SummaryConfig(), torch.device("cuda"))

    def floor(batch: TokenBatch) -> None:
        assert batch.mask is not None
        for x in (*batch.log_probs.values(), batch.mask):
            x.amax()

    def whole(batch: TokenBatch) -> None:
        accumulate(state, batch, default_pairs(batch.log_probs), place=Place())

    def kernel(batch: TokenBatch) -> None:
        triton_pass.collect(batch, default_pairs(batch.log_probs))

    def plain(batch: TokenBatch) -> None:
        chunked.add(state, batch, default_pairs(batch.log_probs), Place(), 0)

    def trl(batch: TokenBatch) -> torch.Tensor:
        assert batch.mask is not None
        d = batch.log_probs["ref"].float() - batch.log_probs["policy"].float()
        return ((torch.exp(d) - d - 1) * batch.mask).sum() / batch.mask.sum()

    return {
        "memory floor: read q, p and the mask once": floor,
        "the whole pass, with Triton": whole,
        "of it the kernel and the sums over its blocks": kernel,
        "the whole pass, plain torch": plain,
        "one k3 mean, as TRL computes it": trl,
    }


def timed(
    found: dict[str, Callable[[TokenBatch], object]], batches: list[TokenBatch]
) -> dict[str, tuple[float, float]]:
    """Median ms of the device, and of the host until a call returns, of each contender."""
    device: dict[str, list[float]] = {name: [] for name in found}
    host: dict[str, list[float]] = {name: [] for name in found}
    given = itertools.cycle(batches)
    started = time.perf_counter()
    for number in itertools.count():
        for name, run in found.items():
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            batch = next(given)
            torch.cuda.synchronize()
            torch.cuda._sleep(4_000_000)  # so that launches are queued up behind it
            before.record()
            called = time.perf_counter()
            run(batch)
            taken = time.perf_counter() - called
            after.record()
            torch.cuda.synchronize()
            if number >= 3:
                device[name].append(before.elapsed_time(after))
                host[name].append(1e3 * taken)
        if number >= 12 and time.perf_counter() - started > SECONDS * len(found):
            break
    return {
        name: (statistics.median(device[name]), statistics.median(host[name])) for name in found
    }


def passes() -> list[str]:
    """The passes, by size and dtype."""
    lines = [
        "| tokens | dtype | what | device ms | x floor | x one k3 mean | GB/s | host ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (size, shape), dtype in itertools.product(SIZES.items(), (torch.float32, torch.bfloat16)):
        results = timed(contenders(), copies(*shape, dtype))
        floor, *_, k3 = (device for device, _ in results.values())
        for name, (device, host) in results.items():
            rate = size * (2 * dtype.itemsize + 1) / device / 1e6
            lines.append(
                f"| {size:,} | {str(dtype).removeprefix('torch.')} | {name} | {device:.3g} "
                f"| {device / floor:.3g} | {device / k3:.3g} | {rate:.3g} | {host:.2f} |"
            )
        torch.cuda.empty_cache()
    return lines


def first_use() -> list[str]:
    """What the first `observe` takes, with an empty cache of Triton's."""
    q, p, mask = (x.cuda() for x in speed.tokens(64, 1024))
    monitor, seconds = Monitor(strict=True), []
    for _ in range(3):
        started = time.perf_counter()
        monitor.observe(policy=q, ref=p, mask=mask)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    monitor.step(0)
    return [f"First observe {seconds[0]:.2f} s, the second {1e3 * seconds[1]:.1f} ms."]


def calls() -> list[str]:
    """What `observe` and `step` cost the host, and how many kernels and copies they launch."""
    loader = KERNELS["cpu"].loader
    assert loader is not None
    loader.wait(300)
    lines = [
        "| tokens | layout | observed | observe, host ms | step, host ms | all of a step of "
        f"{MICRO_BATCHES} | launches of an observe |",
        "|---|---|---|---|---|---|---|",
    ]
    for (rows, columns), packed, much in itertools.product(
        ((16, 256), (64, 1024), (512, 2048)), (False, True), (False, True)
    ):
        given = _observed(rows, columns, packed, much)
        penalty = Penalty("k3", placed="loss", ratio="differentiated", beta=0.04)
        monitor = Monitor(penalty=penalty if much else None, rules={}, strict=True)
        observe, step = [], []
        for number in range(25):
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


def _observed(rows: int, columns: int, packed: bool, much: bool) -> dict[str, torch.Tensor]:
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
        rows.append(speed._overhead(name, {**config, "use_cpu": False}, True))
    return rows


def main() -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=TARGET)
    parser.add_argument("--parts", nargs="*", default=["first_use", "passes", "calls", "demo"])
    parser.add_argument("--on-device", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        triton_cache = Path(directory)
        import os

        os.environ["TRITON_CACHE_DIR"] = str(triton_cache)
        lines = [
            "# On a GPU",
            "",
            f"{torch.cuda.get_device_name()}, {time.strftime('%Y-%m-%d')}, torch "
            f"{version('torch')}, Triton {version('triton')}.",
            "",
        ]
        if arguments.on_device:
            from klmonitor.summary import observer

            observer.away = lambda _: False
        for part in (globals()[name] for name in arguments.parts):
            started = time.perf_counter()
            lines += [*part(), ""]
            arguments.out.write_text("\n".join(lines))
            print(f"{part.__name__}: {time.perf_counter() - started:.0f} s", flush=True)
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
