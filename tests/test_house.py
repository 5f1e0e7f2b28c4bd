"""The house as it is meant to be: few rooms, names that mean one thing, docs made from tables."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest

import klmonitor

ROOT = Path(__file__).parents[1]
MOST_ENTRIES = 26
FOREIGN = ("klmonitor_tensorboard", "klmonitor.summary.numba")
"""Modules that cannot be imported everywhere."""


def test_the_top_of_the_package_is_small():
    entries = {
        path.name
        for path in (ROOT / "klmonitor").iterdir()
        if path.name not in ("py.typed", "__pycache__")
    }
    assert len(entries) <= MOST_ENTRIES, sorted(entries)


MAKE = {"tensor", "zeros", "ones", "empty", "full", "arange", "eye", "rand", "randn", "linspace"}
"""Functions of torch that put what they make on the default device."""


def test_nothing_is_made_on_a_default_device():
    """Which users may set: what is summed lies on the host."""
    for path in sorted((ROOT / "klmonitor").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            of = node.func.value
            if node.func.attr in MAKE and isinstance(of, ast.Name) and of.id == "torch":
                given = {keyword.arg for keyword in node.keywords}
                assert given & {"device", None}, f"{path}:{node.lineno}: name the device"


def modules():
    """Every module of ours that can be imported here."""
    for root in ("klmonitor", "klmonitor_trl", "klmonitor_verl", "klmonitor_openrlhf"):
        package = importlib.import_module(root)
        yield package
        for found in pkgutil.walk_packages(package.__path__, f"{root}."):
            if not found.name.startswith(FOREIGN) and not found.name.endswith("__main__"):
                yield importlib.import_module(found.name)


def test_no_module_bears_the_name_of_a_public_function():
    """After all are imported, every public name is still what it was meant to be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what other packages say of themselves
        every = list(modules())
    functions = {name for name in klmonitor.__all__ if inspect.isfunction(getattr(klmonitor, name))}
    assert functions >= {"attach", "backtest", "exact_kl", "k1", "k2", "k3"}
    last = {module.__name__.rpartition(".")[2] for module in every}
    assert functions & last == set()
    for module in every:
        for name in getattr(module, "__all__", ()):
            assert not isinstance(getattr(module, name), ModuleType), (module.__name__, name)


@pytest.mark.parametrize(
    "name",
    [
        "klmonitor.replay.replay",
        "klmonitor.actions.Actions",
        "klmonitor.sinks.WandbSink",
        "klmonitor.rules.RuleSet",
        "klmonitor.notify.Notifier",
        "klmonitor.testing.token_batch",
        "klmonitor_trl.demo.tiny.make_trainer",
    ],
)
def test_names_that_others_import_stay(name):
    module, _, attribute = name.rpartition(".")
    assert hasattr(importlib.import_module(module), attribute)


def test_docs_that_are_made_from_tables_are_up_to_date():
    done = subprocess.run(
        [sys.executable, "docs/tables.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
