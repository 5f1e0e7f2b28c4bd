"""Faults in a real run of a trainer on Ray, for tests: ``ON_CPU_FAULT`` names one.

``hooks``: every hook of klmonitor's raises, from the first on. ``mailbox``: the mailbox is killed
after the first step. ``worker``: the worker process is killed within its second update.
"""

import functools
import os
import signal

from klmonitor.hooks.imports import when_imported


def install(name, package, hooks, logs):
    """Arrange for a fault.

    Args:
        name: of the fault.
        package: klmonitor's for the trainer.
        hooks: module of it -> class -> methods behind a boundary; the empty class: functions.
        logs: what logs a step: module, class, method, and the step's place and name among its
            arguments (the first after ``self`` is 0).
    """
    faults = {
        "hooks": lambda: every_hook_raises(package, hooks),
        "mailbox": lambda: kill_mailbox(*logs),
        "worker": lambda: kill_worker(f"{package}.worker"),
    }
    faults[name]()


def every_hook_raises(package, hooks):
    """What stands behind klmonitor's boundaries raises; the boundaries themselves stay."""

    def fail(*args, **kwargs):
        raise RuntimeError("a fault that a test planted")

    def spoil(module, classes):
        for owner, names in classes.items():
            for name in names:
                setattr(getattr(module, owner) if owner else module, name, fail)

    for module, classes in hooks.items():
        when_imported(f"{package}.{module}", functools.partial(spoil, classes=classes))


def kill_mailbox(module, owner, method, place, name):
    """After the first step was logged."""

    def wrap(found):
        original = getattr(getattr(found, owner), method)

        @functools.wraps(original)
        def logged(self, *args, **kwargs):
            result = original(self, *args, **kwargs)
            if (kwargs[name] if name in kwargs else args[place]) == 1:
                import ray

                from klmonitor.hooks.mailbox import name_of_job

                ray.kill(ray.get_actor(name_of_job()))
            return result

        setattr(getattr(found, owner), method, logged)

    when_imported(module, wrap)


def kill_worker(module):
    """At the end of the second update, before its sums are sent."""
    count = [0]

    def wrap(found):
        original = found.Worker._end

        def end(self, owner):
            count[0] += 1
            if count[0] == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, owner)

        found.Worker._end = end

    when_imported(module, wrap)
