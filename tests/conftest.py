"""No deadlines, so that a busy machine fails no test; the same examples, and the same pass."""

import pytest
from hypothesis import settings

settings.register_profile("klmonitor", deadline=None, derandomize=True)
settings.load_profile("klmonitor")


@pytest.fixture(scope="session", autouse=True)
def compiled_pass():
    """The compiled passes are there from the first test on."""
    from tests.helpers.steps import wait_for_kernels

    wait_for_kernels()
