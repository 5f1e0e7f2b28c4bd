"""Found first where this directory is on PYTHONPATH: every process of a run gets the stand-ins."""

import os

if os.environ.get("ON_CPU"):
    import openrlhf_on_cpu

    openrlhf_on_cpu.install()
