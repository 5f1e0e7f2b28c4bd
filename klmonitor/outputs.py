"""From what a user names to sinks: ``"tensorboard"``, ``"wandb"``, a sink, a function."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from klmonitor.notify import Notifier, Notify, parse_targets
from klmonitor.report import Report
from klmonitor.sinks import (
    ConsoleSink,
    FanOut,
    PrometheusSink,
    Sink,
    TensorBoardSink,
    WandbSink,
    as_sink,
)

NAMES = ("tensorboard", "wandb", "prometheus")


def make_sinks(
    wanted: Collection[str | Sink | Callable[[Report], None]],
    run_dir: str | os.PathLike[str] | None,
    metrics: str | Sequence[str],
    notify: Notify = None,
) -> FanOut:
    """The sinks of a run behind one boundary, the console (for alerts) first.

    Args:
        wanted: names, sinks, or functions of a report.
        run_dir: TensorBoard files go to its ``tensorboard`` folder; None: ``runs/klmonitor``.
        metrics: which metrics the named sinks send.
        notify: who is told of alerts (see `klmonitor.notify`).

    Raises:
        ValueError: a name is not known, or a target cannot work.
        TypeError: something is neither a sink nor a function.
    """
    sinks: list[Sink] = [ConsoleSink()]
    for sink in wanted:
        if not isinstance(sink, str):
            sinks.append(as_sink(sink, metrics))
        elif sink == "tensorboard":
            log_dir = Path(run_dir) / "tensorboard" if run_dir else Path("runs/klmonitor")
            sinks.append(TensorBoardSink(log_dir, metrics=metrics))
        elif sink == "wandb":
            sinks.append(WandbSink(metrics=metrics))
        elif sink == "prometheus":
            sinks.append(PrometheusSink(metrics=metrics))
        else:
            raise ValueError(f"unknown sink {sink!r}: name {', '.join(NAMES)}, or pass a function")
    targets = parse_targets(notify)
    if targets:
        sinks.append(Notifier(targets, run="" if run_dir is None else str(run_dir)))
    return FanOut(sinks)
