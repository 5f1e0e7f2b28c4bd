"""The numbers of a summary, and the pass that made it."""

from __future__ import annotations

import importlib.util

import pytest

from klmonitor.numbers.assemble import pair_reports
from klmonitor.numbers.running import Running
from klmonitor.numbers.sums import sums_of
from klmonitor.summary import passes, pulls, signatures, unclipped

COMPILE_SECONDS = 3600.0


def step_of(state):
    """The sums of a summary's pairs, by name."""
    return sums_of(state.arrays, state.config.all_groups)


def reports_of(state, running=None):
    """The report of each pair; running numbers start here, or go on."""
    step = step_of(state)
    (running or Running()).advance(step)
    return pair_reports(step)


def wait_for_kernels():
    """Wait until what is compiled for the CPU is there: bits change where it takes over."""
    if importlib.util.find_spec("numba") is not None:
        assert passes.TOKENS.loader.wait(COMPILE_SECONDS)


def choose_pass(patch, name):
    """Make all of the CPU's passes ``"compiled"`` or ``"plain"`` ones."""
    kernels = (passes.TOKENS, signatures.KERNEL, pulls.KERNEL, unclipped.KERNEL)
    if name == "plain":
        for kernel in kernels:
            patch.setattr(kernel, "wrong", "a test wants the plain pass")
        return
    if importlib.util.find_spec("numba") is None:
        pytest.skip("numba is not installed")
    for kernel in kernels:
        assert kernel.loader.wait(COMPILE_SECONDS), kernel.loader.error
        patch.setattr(kernel, "wrong", None)
