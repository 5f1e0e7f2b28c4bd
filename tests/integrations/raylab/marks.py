"""Which tests need a trainer's own environment, and which of them real runs."""

from __future__ import annotations

import importlib.util
import os
from contextlib import contextmanager

import pytest


def need(items, package, name):
    """Skip the tests that bear a package's mark where it is absent; its warnings are no errors."""
    absent = importlib.util.find_spec(package) is None
    why = f"{name} is not installed here: make test-{package}-quick has an environment with it"
    for item in items:
        if item.get_closest_marker(package) is not None:
            item.add_marker(pytest.mark.filterwarnings("ignore"))
            if absent:
                item.add_marker(pytest.mark.skip(reason=why))


def real_runs(package):
    """The marks of a module whose tests take minutes each."""
    off = os.environ.get(f"KLMONITOR_{package.upper()}") != "all"
    return [
        getattr(pytest.mark, package),
        pytest.mark.slow,
        pytest.mark.skipif(off, reason=f"real runs on Ray: make test-{package}"),
    ]


@contextmanager
def labs(make, end):
    """A function that makes labs, each of which is ended."""
    made = []

    def lab(**given):
        made.append(make(**given))
        return made[-1]

    yield lab
    for one in made:
        end(one)
