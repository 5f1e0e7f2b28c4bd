"""Faults in a real run of OpenRLHF (`raylab_faults`)."""

import raylab_faults

HOOKS = {
    "worker": {"Worker": ("_enter", "_caught", "_begin", "_end")},
    "capture": {"DriverCapture": ("_keep", "_observe")},
    "driver": {"Driver": ("close_step", "joined", "kept", "loaded", "logged", "finish")},
    "plugin": {"Process": ("_stops",)},
}
TRAINER, SAVES = "openrlhf.trainer.ppo_trainer", "save_logs_and_checkpoints"


def install(name):
    """Arrange for a fault."""
    logs = (TRAINER, "BasePPOTrainer", SAVES, 0, "global_step")
    raylab_faults.install(name, "klmonitor_openrlhf", HOOKS, logs)
