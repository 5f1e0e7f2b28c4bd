"""klmonitor: KL estimates you can trust, or distrust, while an LLM is trained with RL.

`attach(trainer)` watches a trainer, `Monitor` any other loop; see the README. Names are resolved on
first use, so that reading a run's record needs neither torch nor a trainer.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from klmonitor.attachment import attach
    from klmonitor.audit import exact_kl
    from klmonitor.collector import Collector
    from klmonitor.estimators import k1, k2, k3
    from klmonitor.hooks.handle import Handle
    from klmonitor.monitor import Monitor
    from klmonitor.penalty import Penalty
    from klmonitor.replay import backtest
    from klmonitor.report import Alert, ExtremeToken, PairReport, Report
    from klmonitor_trl import KLMonitorCallback

_HOME = {
    "Alert": "klmonitor.report",
    "Collector": "klmonitor.collector",
    "ExtremeToken": "klmonitor.report",
    "Handle": "klmonitor.hooks.handle",
    "KLMonitorCallback": "klmonitor_trl",
    "Monitor": "klmonitor.monitor",
    "PairReport": "klmonitor.report",
    "Penalty": "klmonitor.penalty",
    "Report": "klmonitor.report",
    "attach": "klmonitor.attachment",
    "backtest": "klmonitor.replay",
    "exact_kl": "klmonitor.audit",
    "k1": "klmonitor.estimators",
    "k2": "klmonitor.estimators",
    "k3": "klmonitor.estimators",
}

__all__ = [  # spelled out, so that type checkers see it
    "Alert",
    "Collector",
    "ExtremeToken",
    "Handle",
    "KLMonitorCallback",
    "Monitor",
    "PairReport",
    "Penalty",
    "Report",
    "attach",
    "backtest",
    "exact_kl",
    "k1",
    "k2",
    "k3",
]
__version__ = version("klmonitor")


def __getattr__(name: str) -> Any:
    if name == "penalty":
        return import_module("klmonitor.penalty")
    if name not in _HOME:
        raise AttributeError(f"module 'klmonitor' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
