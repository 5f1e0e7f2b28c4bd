"""Faults in a real run of verl, for tests: ``ON_CPU_FAULT`` names one."""

import os
import signal

from klmonitor.hooks.imports import when_imported


def install(name):
    """Arrange for a fault.

    ``hooks``: every hook of klmonitor's raises, from the first on. ``mailbox``: the mailbox is
    killed after the second step. ``worker``: the worker process is killed within its second update.
    """
    {"hooks": every_hook_raises, "mailbox": kill_mailbox, "worker": kill_worker}[name]()


def every_hook_raises():
    """What stands behind klmonitor's boundaries raises; the boundaries themselves stay."""

    def fail(*args, **kwargs):
        raise RuntimeError("a fault that a test planted")

    def worker(module):
        for name in ("_enter", "_caught", "_flush", "_reference", "_begin", "_end"):
            setattr(module.Worker, name, fail)

    def capture(module):
        for name in (
            "_keep_mask",
            "_keep_debugged",
            "_keep_entropies",
            "_keep_versions",
            "_observe",
        ):
            setattr(module.DriverCapture, name, fail)

    def driver(module):
        for name in ("close_step", "joined", "saved", "loaded"):
            setattr(module.Driver, name, fail)

    when_imported("klmonitor_verl.worker", worker)
    when_imported("klmonitor_verl.capture", capture)
    when_imported("klmonitor_verl.driver", driver)


def kill_mailbox():
    """After the step 2 was logged."""

    def wrap(module):
        original = module.Tracking.log

        def log(self, data, step, *args, **kwargs):
            result = original(self, data, step, *args, **kwargs)
            if step == 2:
                import ray

                from klmonitor.hooks.mailbox import name_of_job

                ray.kill(ray.get_actor(name_of_job()))
            return result

        module.Tracking.log = log

    when_imported("verl.utils.tracking", wrap)


def kill_worker():
    """At the end of the second update, before its sums are sent."""
    count = [0]

    def wrap(module):
        original = module.Worker._end

        def end(self, owner):
            count[0] += 1
            if count[0] == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, owner)

        module.Worker._end = end

    when_imported("klmonitor_verl.worker", wrap)
