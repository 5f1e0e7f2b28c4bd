"""Found first where this directory is on PYTHONPATH: every process of a run gets the stand-ins."""

import os
import sys

PROCESSES = ("default_worker.py", "klmonitor_openrlhf", "openrlhf.cli")
"""Ray's own agents need nothing of it, and are given seconds to start."""

if os.environ.get("ON_CPU") and any(one in arg for arg in sys.orig_argv for one in PROCESSES):
    import openrlhf_on_cpu

    openrlhf_on_cpu.install()
