"""The table of sinks: what each is called, needs and does; a sink is a module and a line here.

`make_sinks`, ``klmonitor doctor`` and docs/delivery.md read it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from klmonitor.boundary import HealthLog
from klmonitor.notify import Notifier, Notify, parse_targets
from klmonitor.report import Report
from klmonitor.sinks import mlflow, swanlab, trackio, wandb
from klmonitor.sinks.base import FanOut, Sink, as_sink
from klmonitor.sinks.console import ConsoleSink
from klmonitor.sinks.prometheus import PrometheusSink
from klmonitor.sinks.selection import Metrics
from klmonitor.sinks.tensorboard import TensorBoardSink
from klmonitor.sinks.tokentable import Annotate
from klmonitor.sinks.tracker import Tracker, TrackerSink

MAX_DISK = 10**9
"""Bytes."""
EVENTS_SHARE = 0.25
"""What TensorBoard's event files may have of a run's bytes; the record has the rest."""


@dataclass(frozen=True)
class SinkOptions:
    """What a run tells its sinks.

    Attributes:
        run_dir: of the record; None: there is none.
        metrics: which metrics they send.
        tokens: whether trackers get extreme tokens.
        max_disk: bytes that the run may take on disk, event files included.
        annotate: gives those their text; None: they have none.
    """

    run_dir: str | os.PathLike[str] | None = None
    metrics: Metrics = "core"
    tokens: bool = True
    max_disk: int = MAX_DISK
    annotate: Annotate | None = None


@dataclass(frozen=True)
class SinkKind:
    """A row of the table.

    Attributes:
        name: as ``sinks=[...]`` takes it.
        package: the distribution that it needs.
        extra: the extra of klmonitor that brings it.
        text: what it does, in a line.
        make: makes one.
        is_open: whether somebody has opened a run that a sink would go on with; None: it has none.
    """

    name: str
    package: str
    extra: str
    text: str
    make: Callable[[SinkOptions], Sink]
    is_open: Callable[[], bool] | None = None


def _tensorboard(options: SinkOptions) -> Sink:
    directory = Path(options.run_dir) / "tensorboard" if options.run_dir else "runs/klmonitor"
    return TensorBoardSink(
        directory, metrics=options.metrics, max_bytes=int(EVENTS_SHARE * options.max_disk)
    )


def _wandb(options: SinkOptions) -> Sink:
    return wandb.WandbSink(
        metrics=options.metrics,
        run_dir=options.run_dir,
        tokens=options.tokens,
        annotate=options.annotate,
    )


def _tracker(tracker: Tracker, options: SinkOptions) -> Sink:
    return TrackerSink(
        tracker,
        metrics=options.metrics,
        run_dir=options.run_dir,
        tokens=options.tokens,
        annotate=options.annotate,
    )


TABLE = (
    SinkKind("tensorboard", "tensorboard", "tensorboard",
             "scalars, the KL tab and a layout, in the run directory's `tensorboard`",
             _tensorboard),
    SinkKind("wandb", "wandb", "wandb",
             "metrics, alerts, histograms, a table of tokens and the page, in the active run",
             _wandb, wandb.is_open),
    SinkKind("prometheus", "prometheus-client", "prometheus",
             "gauges and counters at `127.0.0.1:9464/metrics`",
             lambda options: PrometheusSink(metrics=options.metrics)),
    SinkKind("trackio", "trackio", "trackio",
             "metrics, alerts, histograms, a table of tokens and the page, in the open run",
             lambda options: _tracker(trackio.TrackioRun(), options), trackio.is_open),
    SinkKind("mlflow", "mlflow", "mlflow",
             "metrics, alerts as tags, tables of tokens and the page as artifacts",
             lambda options: _tracker(mlflow.MlflowRun(), options), mlflow.is_open),
    SinkKind("swanlab", "swanlab", "swanlab",
             "metrics, alerts and a table of tokens as text, and the page",
             lambda options: _tracker(swanlab.SwanlabRun(), options), swanlab.is_open),
)  # fmt: skip


def make_sinks(
    wanted: Collection[str | Sink | Callable[[Report], None]],
    options: SinkOptions,
    notify: Notify = None,
    log: HealthLog | None = None,
) -> FanOut:
    """The sinks of a run behind one boundary each, the console (for alerts) first.

    Args:
        wanted: names of the table, sinks, or functions of a report.
        options: what the named ones are told.
        notify: who is told of alerts (see `klmonitor.notify`).
        log: where failures are counted.

    Raises:
        ValueError: a name is not known, or a target cannot work.
        TypeError: something is neither a sink nor a function.
        ImportError: a sink's package is not installed.
    """
    if isinstance(wanted, str):
        raise TypeError(f"sinks={wanted!r} is one string: give a list, sinks=[{wanted!r}]")
    kinds = {kind.name: kind for kind in TABLE}
    sinks: list[Sink] = [ConsoleSink()]
    for sink in wanted:
        if not isinstance(sink, str):
            sinks.append(as_sink(sink, options.metrics))
        elif sink in kinds:
            sinks.append(kinds[sink].make(options))
        else:
            raise ValueError(f"unknown sink {sink!r}: name {', '.join(kinds)}, or pass a function")
    targets = parse_targets(notify)
    if targets:
        sinks.append(Notifier(targets, run=str(options.run_dir or "")))
    return FanOut(sinks, log=log)
