"""Replace functions of another package where they are defined, when it is imported, and not before.

Whoever says ``from package.module import function`` later gets ours. Nothing is imported for it,
and nothing that fails here reaches the import: what is absent is noted in `Bindings.absent`.
"""

from __future__ import annotations

import functools
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from klmonitor.boundary import cause

Around = Callable[..., Any]
"""Called as ``around(original, *args, **kwargs)`` in the place of a function."""
Called = Callable[[ModuleType], None]


class Bindings:
    """What was replaced in modules, and what they lack.

    Attributes:
        bound: ``module.name`` -> the function that was there.
        absent: ``module.name`` -> why it could not be replaced.
    """

    def __init__(self) -> None:
        """Nothing replaced."""
        self.bound: dict[str, Callable[..., Any]] = {}
        self.absent: dict[str, str] = {}
        self._owners: dict[str, tuple[Any, str, Any]] = {}
        self._over = False

    def add(self, module: str, name: str, around: Around) -> None:
        """Replace ``module.name`` (``function`` or ``Class.method``) as soon as it is there."""
        when_imported(module, functools.partial(self._bind, f"{module}.{name}", name, around))

    def _bind(self, where: str, name: str, around: Around, module: ModuleType) -> None:
        if where in self.bound or self._over:
            return
        try:
            owner: Any = module
            *path, last = name.split(".")
            for part in path:
                owner = getattr(owner, part)
            original = getattr(owner, last)

            @functools.wraps(original)  # marks of decorators, and pickling by reference, survive
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                return around(original, *args, **kwargs)

            setattr(owner, last, wrapper)
        except Exception as error:  # noqa: BLE001  # another package's import must not fail for us
            self.absent[where] = cause(error)
            return
        self.absent.pop(where, None)
        self.bound[where] = original
        self._owners[where] = (owner, last, wrapper)

    def undo(self) -> None:
        """Put back what was there, unless somebody has replaced our replacement; for good."""
        self._over = True
        for where, (owner, last, wrapper) in self._owners.items():
            if getattr(owner, last, None) is wrapper:
                setattr(owner, last, self.bound[where])
        self._owners.clear()
        self.bound.clear()


def when_imported(name: str, call: Called) -> None:
    """Call with a module once it has been imported, or at once if it is there already.

    What is called must not raise; if it does all the same, the import goes on.
    """
    with _lock:
        _wanted.setdefault(name, []).append(call)
        if not any(isinstance(one, _Finder) for one in sys.meta_path):
            sys.meta_path.insert(0, _Finder())
    module = sys.modules.get(name)
    if module is not None and not getattr(
        getattr(module, "__spec__", None), "_initializing", False
    ):
        _call(module, [call])


def exists(module: str) -> bool:
    """Whether a module can be found; its packages are imported for it."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def imported(modules: Iterable[str]) -> str:
    """Import those that exist, without their warnings; why that fails, or nothing."""
    logging.disable(logging.WARNING)  # what a trainer's imports warn of is no fault of ours
    try:
        for module in dict.fromkeys(modules):
            if exists(module):
                import_module(module)
    except Exception as error:  # noqa: BLE001  # a package that it needs is missing
        return f"cannot be imported: {type(error).__name__}: {error}".splitlines()[0]
    finally:
        logging.disable(logging.NOTSET)
    return ""


_wanted: dict[str, list[Called]] = {}
_lock = threading.RLock()


def _call(module: ModuleType, calls: Iterable[Called]) -> None:
    for call in calls:
        try:
            call(module)
        except Exception:  # noqa: BLE001, PERF203  # another package's import must not fail for us
            continue


class _Loader(Loader):
    """Another loader's module, and then our calls."""

    def __init__(self, loader: Any, name: str) -> None:
        self._loader, self._name = loader, name

    def __getattr__(self, item: str) -> Any:
        return getattr(self._loader, item)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)  # type: ignore[no-any-return]  # some loader's

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _call(module, tuple(_wanted.get(self._name, ())))


class _Finder(MetaPathFinder):
    """Finds what the others find, and puts `_Loader` around those that somebody waits for."""

    _busy = threading.local()

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _wanted or getattr(self._busy, "on", False):
            return None
        self._busy.on = True
        try:
            spec = find_spec(name)
        finally:
            self._busy.on = False
        if spec is None or spec.loader is None:
            return None
        spec.loader = _Loader(spec.loader, name)
        return spec
