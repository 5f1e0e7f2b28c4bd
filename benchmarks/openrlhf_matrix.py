"""The tests of OpenRLHF's integration, in an environment of their own.

    python benchmarks/openrlhf_matrix.py --quick    # newest OpenRLHF, the synthetic tier (minutes)
    python benchmarks/openrlhf_matrix.py            # also 0.9.10 and 0.10.4, then the real runs

The environment is ``.cache/openrlhf/newest``; nothing is compiled. An older OpenRLHF is put before
it, its code alone. Real runs are kept in ``.cache/openrlhf/runs``: what is finished is not run
again, so that a broken-off matrix goes on where it was (``--fresh``: all again).
"""

from __future__ import annotations

import sys

from trainer_matrix import Trainer

NEEDS = (
    *("numpy", "ray[default]==2.55.0", "transformers==5.15.0", "datasets", "accelerate", "peft"),
    *("einops", "jsonlines", "loralib", "optree", "packaging", "nvidia-ml-py", "tensorboard"),
    *("torchdata", "torchmetrics", "tqdm", "wandb", "aiohttp", "sympy", "pylatexenc", "wheel"),
    *("setuptools", "numba", "pytest", "hypothesis"),
)
"""What OpenRLHF needs but vllm and flash_attn, which have no use on a CPU."""


def install(openrlhf: Trainer) -> None:
    """OpenRLHF, and a DeepSpeed that compiles what it needs when it needs it."""
    openrlhf.pip("--no-deps", "openrlhf>=0.11.2")
    openrlhf.pip(openrlhf.torch(), *NEEDS)
    openrlhf.pip(
        "--no-build-isolation", "deepspeed==0.19.6", DS_BUILD_OPS="0", DS_ACCELERATOR="cpu"
    )


OPENRLHF = Trainer(
    name="openrlhf",
    install=install,
    older=("0.9.10", "0.10.4"),
    environ={"DS_ACCELERATOR": "cpu"},
)

if __name__ == "__main__":
    sys.exit(OPENRLHF.main(__doc__))
