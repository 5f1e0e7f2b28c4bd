"""No deadlines, so that a busy machine fails no test; the same examples, and the same pass."""

import importlib.util

import pytest
from hypothesis import settings

settings.register_profile("klmonitor", deadline=None, derandomize=True)
settings.load_profile("klmonitor")


@pytest.fixture(scope="session", autouse=True)
def compiled_pass():
    """The compiled pass is there from the first test on: bits change where it takes over."""
    if importlib.util.find_spec("numba") is not None:
        from klmonitor.summary.passes import KERNELS
        from tests.helpers.steps import COMPILE_SECONDS

        assert KERNELS["cpu"].loader.wait(COMPILE_SECONDS)
