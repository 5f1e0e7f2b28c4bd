"""Run a function in several gloo processes: forked from a server that has torch imported."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from tests.helpers.steps import wait_for_kernels

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "torch.distributed", "klmonitor.monitor"])


def run_ranks(
    world: int, function: Callable[..., Any], *arguments: Any, timeout: float = 120
) -> list[Any]:
    """``function(rank, world, *arguments)`` in each of `world` processes; their results by rank."""
    queue = CONTEXT.Queue()
    port = _free_port()
    processes = [
        CONTEXT.Process(target=_worker, args=(queue, rank, world, port, function, arguments))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    try:
        results = dict(queue.get(timeout=timeout) for _ in range(world))
    finally:
        for process in processes:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
    failures = [value for value in results.values() if isinstance(value, _Failure)]
    assert not failures, "\n".join(failure.text for failure in failures)
    return [results[rank] for rank in range(world)]


class _Failure:
    def __init__(self, text: str) -> None:
        self.text = text


def _worker(queue: Any, rank: int, world: int, port: int, function: Any, arguments: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        wait_for_kernels()
        dist.init_process_group("gloo", rank=rank, world_size=world)
        result = function(rank, world, *arguments)
        dist.barrier()
        dist.destroy_process_group()
    except Exception:  # noqa: BLE001  # a rank reports whatever went wrong
        result = _Failure(f"rank {rank}:\n{traceback.format_exc()}")
    queue.put((rank, result))


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
