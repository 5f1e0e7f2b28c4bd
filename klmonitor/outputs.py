"""From what a user names to sinks: ``"tensorboard"``, ``"wandb"``, a sink, a plain function."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from klmonitor.report import Report

if TYPE_CHECKING:
    from klmonitor.sinks import Sink

NAMES = ("tensorboard", "wandb")


def make_sinks(
    wanted: Collection[str | Sink | Callable[[Report], None]],
    run_dir: str | os.PathLike[str] | None,
    metrics: str | Sequence[str],
) -> list[Sink]:
    """The sinks of a run, the console (for alerts) first.

    Args:
        wanted: names, sinks, or functions of a report.
        run_dir: TensorBoard files go to its ``tensorboard`` folder; None: ``runs/klmonitor``.
        metrics: which metrics the named sinks send.

    Raises:
        ValueError: a name is not known.
    """
    from klmonitor.sinks import as_sink
    from klmonitor.sinks.console import ConsoleSink

    sinks: list[Sink] = [ConsoleSink()]
    for sink in wanted:
        if not isinstance(sink, str):
            sinks.append(as_sink(sink))
        elif sink == "tensorboard":
            from klmonitor.sinks.tensorboard import TensorBoardSink

            log_dir = Path(run_dir) / "tensorboard" if run_dir else Path("runs/klmonitor")
            sinks.append(TensorBoardSink(log_dir, metrics=metrics))
        elif sink == "wandb":
            from klmonitor.sinks.wandb import WandbSink

            sinks.append(WandbSink(metrics=metrics))
        else:
            raise ValueError(f"unknown sink {sink!r}: name {' or '.join(NAMES)}, or pass a function")
    return sinks
