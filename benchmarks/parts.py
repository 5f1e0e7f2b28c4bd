"""What a driver and its workers pay for parts: 256 of them, and what sending one costs a worker."""

from __future__ import annotations

import time

import torch

from klmonitor import Collector, Monitor

WORKERS, ROWS, LENGTH, LARGE = 256, 64, 256, 4 * 2**20


def batch(rows: int, length: int, seed: int) -> dict[str, torch.Tensor]:
    """Three policies' log-probs and a mask."""
    generator = torch.Generator().manual_seed(seed)
    policy = -torch.rand(rows, length, generator=generator)
    near = {
        name: policy + scale * torch.randn(policy.shape, generator=generator)
        for name, scale in (("old", 0.01), ("ref", 0.1))
    }
    prompts = torch.arange(rows) + 1000 * seed
    return {"policy": policy, **near, "mask": policy < 0, "prompt_ids": prompts}


def warm() -> None:
    """Load what is compiled."""
    collector, until = Collector(), time.time() + 60
    from klmonitor.summary.passes import TOKENS

    while not TOKENS.loader.ready() and time.time() < until:
        time.sleep(0.1)
    collector.observe(**batch(8, 8, 0))
    collector.take()


def main() -> None:
    """Print CPU seconds."""
    torch.set_num_threads(1)
    warm()
    parts = []
    for worker in range(8):
        collector = Collector(f"actor-{worker}")
        given = batch(ROWS, LENGTH, worker)
        begun = time.process_time()
        collector.observe(**given)
        parts.append(collector.take())
        print(f"worker: observe {ROWS * LENGTH} tokens, take: {time.process_time() - begun:.4f} s")
    print("bytes a part", len(parts[0]))
    seconds = []
    for _ in range(20):
        monitor = Monitor(process_group=False)
        begun = time.process_time()
        for worker in range(WORKERS):
            monitor.add_part(parts[worker % 8])
        seconds.append(time.process_time() - begun)
    seconds.sort()
    print(f"driver: {WORKERS} parts in {seconds[0]:.4f} s at best, median {seconds[10]:.4f} s")
    given = batch(LARGE // 1024, 1024, 1)
    for _ in range(3):
        collector, monitor = Collector(), Monitor(process_group=False)
        begun = time.process_time()
        collector.observe(**given)
        alone = time.process_time() - begun
        begun = time.process_time()
        monitor.observe(**given)
        monitor.step(0)
        whole = time.process_time() - begun
        print(f"driver: {LARGE} tokens: pass {alone:.3f} s, with step {whole:.3f} s")


if __name__ == "__main__":
    main()
