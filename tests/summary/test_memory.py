"""What a pass needs of memory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

MEASURE = """
import gc
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.helpers.batches import made_up
from klmonitor import Monitor
from klmonitor.summary import passes, signatures

for kernel in (passes.TOKENS, signatures.KERNEL):
    if {plain}:
        kernel.wrong = "the plain pass is wanted"
    else:
        assert kernel.loader.wait(300)

def kib(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

generator = torch.Generator().manual_seed(0)
q = -torch.rand({rows}, 1024, generator=generator)
p = q + 0.1 * torch.randn(q.shape, generator=generator)
p[::7, ::50] -= 30  # the costlier way
mask = torch.rand(q.shape, generator=generator) < 0.8
monitor = Monitor(strict=True)
monitor.observe(policy=q[:200], ref=p[:200], mask=mask[:200])
gc.collect()
before = kib("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
monitor.observe(policy=q, ref=p, mask=mask)
print(kib("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("plain", "least", "most"), [(True, 1, 24), (False, 0, 1)])
def test_a_pass_needs_little_memory_beside_its_input(plain, least, most):
    """At most 64 MiB for 8M tokens: a few tiles, and some numbers of each sequence."""
    paths = os.pathsep.join(path for path in sys.path if path)
    # A fixed threshold: freed tiles go back to the system instead of hiding in the heap.
    env = {**os.environ, "PYTHONPATH": paths, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", MEASURE.format(rows=2048, plain=plain)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    peak = int(done.stdout) / 1024
    assert least <= peak < most, f"{peak:.1f} MiB for 2M tokens"
