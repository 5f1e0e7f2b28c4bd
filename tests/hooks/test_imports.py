"""Functions of another package, replaced when it is imported; what must not reach the import."""

from __future__ import annotations

import pickle
import sys

import pytest

from klmonitor.hooks.imports import Bindings, when_imported

SOURCE = """
imported = True
def double(x):
    return 2 * x
class Thing:
    def size(self):
        return 3
"""


@pytest.fixture
def package(tmp_path, monkeypatch, request):
    name = f"theirs_{abs(hash(request.node.name)) % 10**8}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


def plus_one(original, *args, **kwargs):
    return original(*args, **kwargs) + 1


def test_a_function_is_replaced_when_its_module_is_imported_and_not_before(package):
    bindings = Bindings()
    bindings.add(package, "double", plus_one)
    bindings.add(package, "Thing.size", plus_one)
    assert package not in sys.modules
    module = __import__(package)
    assert (module.double(2), module.Thing().size()) == (5, 4)
    assert set(bindings.bound) == {f"{package}.double", f"{package}.Thing.size"}
    assert pickle.loads(pickle.dumps(module.double)) is module.double
    bindings.undo()
    assert (module.double(2), module.Thing().size()) == (4, 3)


def test_what_was_undone_stays_so_whoever_comes_after(package):
    first, second = Bindings(), Bindings()
    first.add(package, "double", plus_one)
    module = __import__(package)
    first.undo()
    second.add(package, "double", plus_one)
    assert module.double(2) == 5
    assert first.bound == {}


def test_one_that_is_imported_already_is_replaced_at_once(package):
    module = __import__(package)
    bindings = Bindings()
    bindings.add(package, "double", plus_one)
    bindings.add(package, "double", plus_one)  # once is enough
    assert module.double(2) == 5


@pytest.mark.parametrize("name", ["gone", "Thing.gone", "Gone.size"])
def test_what_is_not_there_is_noted_and_the_import_goes_on(package, name):
    bindings = Bindings()
    bindings.add(package, name, plus_one)
    assert __import__(package).imported
    assert f"{package}.{name}" in bindings.absent
    assert bindings.bound == {}


def test_what_raises_after_an_import_does_not_reach_it(package):
    def fail(module):
        raise RuntimeError("ours")

    when_imported(package, fail)
    assert __import__(package).imported


def test_a_module_that_is_not_there_is_missing_as_ever():
    when_imported("nobody_has_this_module", print)
    with pytest.raises(ModuleNotFoundError):
        __import__("nobody_has_this_module")
