"""Faults in a real run of OpenRLHF, for tests: ``ON_CPU_FAULT`` names one."""

import functools
import os
import signal

from klmonitor.hooks.imports import when_imported


def install(name):
    """Arrange for a fault.

    ``hooks``: every hook of klmonitor's raises, from the first on. ``mailbox``: the mailbox is
    killed after the first step. ``worker``: the worker process is killed within its second update.
    """
    {"hooks": every_hook_raises, "mailbox": kill_mailbox, "worker": kill_worker}[name]()


def every_hook_raises():
    """What stands behind klmonitor's boundaries raises; the boundaries themselves stay."""

    def fail(*args, **kwargs):
        raise RuntimeError("a fault that a test planted")

    def spoil(owner, *names):
        for name in names:
            setattr(owner, name, fail)

    def worker(module):
        spoil(module.Worker, "_enter", "_caught", "_begin", "_end")
        module._warm = fail

    def capture(module):
        spoil(module.DriverCapture, "_keep", "_observe")

    def driver(module):
        spoil(module.Driver, "close_step", "joined", "kept", "loaded", "logged", "finish")

    def plugin(module):
        spoil(module.Process, "_stops")

    when_imported("klmonitor_openrlhf.worker", worker)
    when_imported("klmonitor_openrlhf.capture", capture)
    when_imported("klmonitor_openrlhf.driver", driver)
    when_imported("klmonitor_openrlhf.plugin", plugin)


def kill_mailbox():
    """After the first step was logged."""

    def wrap(module):
        original = module.BasePPOTrainer.save_logs_and_checkpoints

        @functools.wraps(original)
        def save(self, global_step, logs_dict=None, client_states=None):
            result = original(self, global_step, logs_dict, client_states)
            if global_step == 1:
                import ray

                from klmonitor.hooks.mailbox import name_of_job

                ray.kill(ray.get_actor(name_of_job()))
            return result

        module.BasePPOTrainer.save_logs_and_checkpoints = save

    when_imported("openrlhf.trainer.ppo_trainer", wrap)


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

    when_imported("klmonitor_openrlhf.worker", wrap)
