"""What a first start costs, what compiling beside training costs it, and merging workers' parts.

Part of `make bench`; `python benchmarks/coldstart.py` runs it alone.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from klmonitor import Collector, Monitor
from klmonitor.summary import kernelcache

PROCESSES = (1, 4)
PARTS = 256
STEPS = 140
"""Of the demo, half of them beside a child that compiles: 60 pairs after the first steps."""
LEFT_OUT = 20

FIRST = """
import time, torch
import klmonitor.monitor
from klmonitor import Monitor
q = -torch.rand(8, 64)
started = time.process_time()
monitor = Monitor()
monitor.observe(policy=q, ref=q - 0.1)
monitor.step(0)
print(time.process_time() - started)
"""


def starts() -> list[str]:
    """CPU seconds of a monitor's first step on an empty cache, by processes at once."""
    lines = [
        "## The first step on an empty cache",
        "",
        "`Monitor()`, the first `observe` and `step`, after the imports; a child compiles beside.",
        "",
        "| processes at once | CPU seconds, the slowest of each of 5 starts |",
        "|---|---|",
    ]
    for number in PROCESSES:
        slowest = []
        for _ in range(5):
            with tempfile.TemporaryDirectory() as cache:
                slowest.append(max(_start(number, cache)))
                _end_children(cache)
        shown = ", ".join(f"{seconds:.2f}" for seconds in sorted(slowest))
        lines.append(f"| {number} | {shown} |")
    return [*lines, ""]


def _start(number: int, cache: str) -> list[float]:
    environment = {
        **os.environ,
        "KLMONITOR_CACHE_DIR": cache,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    command = [sys.executable, "-c", FIRST]
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(number)
    ]
    return [float(process.communicate()[0]) for process in started]


def _end_children(cache: str) -> None:
    """End what still compiles into a cache that is about to be deleted."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if cache.encode() in words and b"kernelcache" in words:
            os.kill(int(path.parent.name), signal.SIGKILL)


def beside() -> list[str]:
    """Steps of the demo beside a child that compiles, and while it is stopped, in turn."""
    from transformers import TrainerCallback

    from klmonitor.attachment import attach
    from klmonitor_trl.demo import tiny

    class Switch(TrainerCallback):  # type: ignore[misc]
        """Lets the child run in every other step, and takes the time."""

        def __init__(self, child: int) -> None:
            self.child, self.seconds, self.last = child, [], time.perf_counter()

        def on_step_end(self, args: object, state: object, *_: object, **__: object) -> None:
            self.seconds.append(time.perf_counter() - self.last)
            odd = state.global_step % 2  # type: ignore[attr-defined]
            os.kill(self.child, signal.SIGCONT if odd else signal.SIGSTOP)
            self.last = time.perf_counter()

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        model = tiny.save_tiny_model(Path(directory) / "model")
        trainer = tiny.make_trainer(model, Path(directory) / "run", steps=STEPS, beta=0.04)
        handle = attach(trainer)
        place = Path(directory) / "cache"
        place.mkdir()
        child = kernelcache.start(place)
        assert child is not None
        switch = Switch(child)
        trainer.add_callback(switch)
        trainer.train()
        handle.detach()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    seconds = switch.seconds[LEFT_OUT:]
    ratios = [a / b for a, b in zip(seconds[1::2], seconds[::2], strict=False)]
    low, high = _median_interval(ratios)
    return [
        "## Training while a child compiles",
        "",
        f"A step of the demo beside the compiling child over the step before it, with the child "
        f"stopped: median {statistics.median(ratios):.3f}, 95 % interval {low:.3f} to {high:.3f}, "
        f"{len(ratios)} pairs ({1e3 * statistics.median(seconds[::2]):.0f} ms a step, one torch "
        f"thread, {os.cpu_count()} cores).",
        "",
    ]


def _median_interval(values: list[float]) -> tuple[float, float]:
    """A 95 % bootstrap interval of the median."""
    rng = np.random.default_rng(0)
    drawn = rng.choice(values, (4000, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return float(low), float(high)


def parts() -> list[str]:
    """Merging the parts of many workers on a driver."""
    lines = [
        f"## {PARTS} parts on a driver",
        "",
        "| tokens a part | pairs | kB a part | median ms to merge all (11 rounds) |",
        "|---|---|---|---|",
    ]
    for rows, columns in ((8, 128), (128, 512)):
        for names in (("policy", "ref"), ("policy", "ref", "old")):
            data = [_part(seed, rows, columns, names) for seed in range(8)]
            seconds = []
            for _ in range(11):
                driver = Monitor(process_group=False)
                started = time.perf_counter()
                for number in range(PARTS):
                    driver.add_part(data[number % len(data)])
                driver._intake.take("train")
                seconds.append(time.perf_counter() - started)
            lines.append(
                f"| {rows * columns:,} | {len(names) - 1} | {len(data[0]) / 1e3:.1f} "
                f"| {1e3 * statistics.median(seconds):.0f} |"
            )
    return [*lines, ""]


def _part(seed: int, rows: int, columns: int, names: tuple[str, ...]) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    base = -3 * torch.rand(rows, columns, generator=generator)
    found = {name: base + 0.1 * torch.randn(base.shape, generator=generator) for name in names}
    collector = Collector(f"worker-{seed}")
    ids = torch.randint(0, 150_000, base.shape, generator=generator)
    collector.observe(**found, token_ids=ids, prompt_ids=torch.arange(rows) // 8)
    return collector.take()


if __name__ == "__main__":
    print("\n".join([*starts(), *beside(), *parts()]))
