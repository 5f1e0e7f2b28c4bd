"""OpenRLHF's own code on synthetic tensors; skipped where it is absent (make test-openrlhf)."""

from __future__ import annotations

import importlib.metadata
import sys
import warnings
from pathlib import Path

import pytest

from tests.integrations.raylab.marks import need


def pytest_collection_modifyitems(items):
    need(items, "openrlhf", "OpenRLHF")


@pytest.fixture(scope="session")
def openrlhf():
    """The package with stand-ins for vllm and flash_attn, and our hooks in it."""
    cpu = str(Path(__file__).parent / "cpu")
    sys.path.append(cpu)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import openrlhf_on_cpu

        openrlhf_on_cpu.stand_ins()
        from klmonitor.hooks.imports import imported
        from klmonitor_openrlhf.plugin import HOOKS, PROCESS

        PROCESS.install()
        assert imported(hook.module for hook in HOOKS) == ""
        import openrlhf
    openrlhf.__version__ = importlib.metadata.version("openrlhf")  # it has none of its own
    sys.path.remove(cpu)
    return openrlhf
