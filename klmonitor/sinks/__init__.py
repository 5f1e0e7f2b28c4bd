"""Where reports go besides the record: trackers, the console, a function of yours.

A sink is any callable that takes a `Report`, with a `close`; `as_sink` makes one of a plain
function or of a logger with ``log_metrics``. A sink that cannot start fails at setup, with the
remedy. One that fails later costs its own data only: `FanOut` is the boundary.

wandb, tensorboard and prometheus-client are imported when their sink is made, never before.
"""

from klmonitor.sinks.base import FanOut, Sink, as_sink
from klmonitor.sinks.console import ConsoleSink
from klmonitor.sinks.prometheus import PrometheusSink
from klmonitor.sinks.selection import Metrics, check_metrics, select
from klmonitor.sinks.tensorboard import TensorBoardSink
from klmonitor.sinks.wandb import WandbSink

__all__ = [
    "ConsoleSink",
    "FanOut",
    "Metrics",
    "PrometheusSink",
    "Sink",
    "TensorBoardSink",
    "WandbSink",
    "as_sink",
    "check_metrics",
    "select",
]
