"""Faults in a real run of verl (`raylab_faults`)."""

import raylab_faults

KEPT = ("_keep_mask", "_keep_debugged", "_keep_entropies", "_keep_versions")
HOOKS = {
    "worker": {"Worker": ("_enter", "_caught", "_flush", "_reference", "_begin", "_end")},
    "capture": {"DriverCapture": (*KEPT, "_observe")},
    "driver": {"Driver": ("close_step", "joined", "saved", "loaded")},
}
LOGS = ("verl.utils.tracking", "Tracking", "log", 1, "step")


def install(name):
    """Arrange for a fault."""
    raylab_faults.install(name, "klmonitor_verl", HOOKS, LOGS)
