"""The tests of verl's integration, in an environment of their own.

    python benchmarks/verl_matrix.py --quick    # newest verl, the synthetic tier (8 minutes)
    python benchmarks/verl_matrix.py            # also 0.7.1 and 0.8.0, then the real runs (hours)

The environment is ``.cache/verl/newest``. An older verl is put before it, its code alone: what it
needs besides is the newest version's. Real runs are kept in ``.cache/verl/runs``: what is finished
is not run again, so that a broken-off matrix goes on where it was (``--fresh``: all again).
"""

from __future__ import annotations

import sys

from trainer_matrix import Trainer

NEEDS = (
    *("verl>=0.9.1", "TransferQueue>=0.1.10", "fastapi", "uvicorn", "cachetools", "numba"),
    *("setuptools", "pytest", "hypothesis", "tensorboard"),
)
VERL = Trainer(
    name="verl",
    install=lambda verl: verl.pip(verl.torch(), *NEEDS),
    older=("0.7.1", "0.8.0"),
    environ={"VERL_USE_EXTERNAL_PLUGINS": "none"},
)

if __name__ == "__main__":
    sys.exit(VERL.main(__doc__))
