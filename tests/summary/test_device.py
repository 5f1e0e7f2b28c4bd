"""What holds on a GPU, as far as it shows without one; and the memory of a pass."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from klmonitor import Monitor
from klmonitor.pairs import default_pairs
from klmonitor.summary import chunked
from klmonitor.summary.extremes import Place
from klmonitor.summary.fields import SummaryConfig
from klmonitor.summary.state import Summary
from tests.helpers.tritoncases import CASES, made_up, state_of


def plain(batch, by_row=True):
    return chunked.collect(batch, default_pairs(batch.log_probs), by_row=by_row)


# --- the ways that only a GPU takes ----------------------------------------------------------
@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """A switch after which tensors say that they are not on the CPU."""
    return lambda: monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda _: False))


@pytest.mark.parametrize("name", CASES)
def test_the_way_without_looking_at_values_finds_the_same(name, as_on_a_gpu):
    batch = CASES[name]()
    rows = torch.arange(batch.shape[0]) % 2
    states = []
    for _ in range(2):
        state = Summary.empty(SummaryConfig(groups=("math",), prompt_buckets=64))
        plain(batch).add_to(state, Place(0, 3), rows)
        states.append(state)
        as_on_a_gpu()
    expected, found = states
    assert torch.equal(found.histogram, expected.histogram)
    assert torch.equal(found.policies, expected.policies)
    assert torch.equal(found.maxima, expected.maxima)
    assert torch.equal(found.tokens, expected.tokens)
    # A tile that is looked at sums the same products of the same tokens.
    torch.testing.assert_close(found.sums, expected.sums, rtol=1e-13, atol=0, equal_nan=True)
    torch.testing.assert_close(found.prompts, expected.prompts, rtol=1e-13, atol=0, equal_nan=True)


# --- no waiting ------------------------------------------------------------------------------
class NoUpload(TorchFunctionMode):
    """Fails where values of Python become a tensor on the device: the host would wait for it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = func in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)
        if made and out.device.type == "meta":
            pytest.fail(f"{func.__name__} copies to the device")
        if func is torch.Tensor.__getitem__ and args[0].device.type == "meta":
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, list) for part in index):
                pytest.fail("a list as an index is copied to the device")
        return out


class NoCrossing(TorchDispatchMode):
    """Fails where an operation takes a tensor on each side."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = [x for a in args for x in (a if isinstance(a, (list, tuple)) else [a])]
        tensors = [x for x in (*given, out) if isinstance(x, torch.Tensor)]
        devices = {x.device.type for x in tensors if x.dim() > 0 or func.name() == "aten::_to_copy"}
        if len(devices) > 1:
            pytest.fail(f"{func.name()} copies between devices")
        return out


def without_values(batch):
    """The same batch on a device that has no values: whatever asks for one raises."""

    def meta(tensor):
        return None if tensor is None else tensor.to("meta")

    return replace(
        batch,
        log_probs={name: values.to("meta") for name, values in batch.log_probs.items()},
        mask=meta(batch.mask),
        token_ids=meta(batch.token_ids),
        segments=meta(batch.segments),
        prompt_ids=meta(batch.prompt_ids),
    )


@pytest.mark.parametrize("group", ["math", None, "by row"])
@pytest.mark.parametrize("packed", [False, True])
def test_observe_asks_for_no_value(packed, group):
    batch = without_values(made_up(0, 8, 5000, policies=4))
    observe = {**batch.log_probs, "mask": batch.mask, "token_ids": batch.token_ids}
    if packed:
        observe = {name: values.flatten() for name, values in observe.items()}
        observe["cu_seqlens"] = torch.empty(9, dtype=torch.int64, device="meta")
    if group == "by row":
        group = torch.empty(8, dtype=torch.int64, device="meta")
    observe |= {"prompt_ids": batch.prompt_ids, "group": group}
    monitor = Monitor(groups=("math",), strict=True)
    monitor._observed = monitor._intake._checked = True  # the first call may read values
    monitor.observe(**observe)
    with NoUpload(), NoCrossing():
        monitor.observe(**observe)
    assert monitor.errors == 0


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("name", ["off-policy", "no mask", "sliced", "transposed", "one column"])
def test_the_triton_pass_asks_for_no_value(name, monkeypatch):
    from klmonitor.summary import triton_pass

    launched = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *args, **constants: launched.append((grid, args, constants))

    monkeypatch.setattr(triton_pass, "sum_tokens", Kernel())
    batch = without_values(CASES[name]())
    pairs = default_pairs(batch.log_probs)
    assert triton_pass.fits(batch)
    state_of(batch, triton_pass.collect(batch, pairs))
    launched.clear()
    with NoUpload(), NoCrossing():
        state = state_of(batch, triton_pass.collect(batch, pairs))
    assert state.device.type == "meta"
    assert len(launched) == len(pairs), "one launch a pair"


# --- memory ----------------------------------------------------------------------------------
MEASURE = """
import gc
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.helpers.tritoncases import made_up
from klmonitor import Monitor
from klmonitor.summary import passes, signatures

for kernel in (passes.KERNELS["cpu"], signatures.KERNEL):
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
