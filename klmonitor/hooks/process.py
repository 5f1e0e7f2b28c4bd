"""What one process is to a trainer on Ray: its driver, a worker, or neither so far.

Functions of the trainer are replaced where it defines them, in every process; whom they call is
decided when they are called. What of ours raises is caught, counted and told once; the trainer's
own function runs in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from klmonitor.boundary import Boundary, HealthLog
from klmonitor.hooks.imports import Bindings


def unattachable(name: str, instead: str) -> Callable[..., Any]:
    """An ``attach`` that refuses: the trainer runs within Ray, where nobody can call it.

    Args:
        name: of the trainer.
        instead: how it is watched, for the message.
    """

    def attach(trainer: Any, **options: Any) -> Any:
        """Refuse.

        Raises:
            TypeError: always; the message says what to do instead.
        """
        raise TypeError(f"{name} is watched without attach(): {instead}")

    return attach


class Hook(NamedTuple):
    """A function of a trainer that is replaced.

    Attributes:
        module: where it is defined.
        name: ``function`` or ``Class.method``.
        handler: ``capture.*`` or ``worker.*``: what goes around it, of this process; any other is
            a method of the process, with an underscore before it.
        without: what is done where this trainer lacks it; empty: nothing is missing.
    """

    module: str
    name: str
    handler: str
    without: str


class Process:
    """The hooks of one process.

    Args:
        hooks: what is replaced; a module that the trainer lacks is never imported, and nothing is
            missing of it.
        worker: the module whose `Worker` a worker's hooks call.

    Attributes:
        bindings: what was replaced.
        driver: the run's watch; None: there is none (yet).
        worker: the process's `Worker`; None: no loss was computed here.
    """

    def __init__(self, hooks: Sequence[Hook], worker: str) -> None:
        """Nothing replaced."""
        self.bindings = Bindings()
        self.driver: Any = None
        self.log = HealthLog()
        self._hooks, self._worker_module = hooks, worker
        self._worker: Any = None
        self._guard = Boundary("klmonitor's hook", self.log, patience=None)

    @property
    def worker(self) -> Any:
        """The process's worker, made at its first use; None where that fails."""
        if self._worker is None:
            self._worker = self._guard(lambda: import_module(self._worker_module).Worker())
        return self._worker

    def install(self) -> None:
        """Replace the trainer's functions as soon as it has them."""
        for hook in self._hooks:
            self.bindings.add(hook.module, hook.name, self._around(hook))

    def _around(self, hook: Hook) -> Callable[..., Any]:
        of, _, name = hook.handler.rpartition(".")
        if not of:
            return getattr(self, f"_{name}")  # type: ignore[no-any-return]  # a method

        def around(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            owner = self.worker if of == "worker" else getattr(self.driver, "capture", None)
            if owner is None:
                return original(*args, **kwargs)
            return getattr(owner, name)(original, *args, **kwargs)

        return around

    def absent(self) -> dict[str, str]:
        """Function that this trainer lacks -> what is done without it."""
        without = {f"{hook.module}.{hook.name}": hook.without for hook in self._hooks}
        found = self.bindings.absent
        return {
            name: f"{without[name]} ({why})" for name, why in found.items() if without.get(name)
        }

    def _set_up(self, module: str, make: Callable[[Any, Any], Any]) -> bool:
        """Make the driver; what the user has set wrongly is raised, whatever else fails is told.

        Args:
            module: that defines the driver.
            make: gives the driver; called with the module and `klmonitor.hooks.configuration`.

        Returns:
            Whether there is one now.

        Raises:
            ValueError, TypeError, OSError: an option cannot work; the message has the remedy.
        """
        found = self._guard(import_module, module)
        loader = self._guard(import_module, "klmonitor.hooks.configuration")
        if found is None or loader is None:
            return False
        try:
            self.driver = make(found, loader)
        except (ValueError, TypeError, OSError):
            raise
        except Exception as error:  # noqa: BLE001  # training goes on without us
            self._guard.caught(error)
        return self.driver is not None

    def _outermost(self, call: Callable[..., Any], *args: Any) -> Any:
        """An entry of the driver's, behind its own boundary."""
        return self.driver.guards["callback"](call, *args)
