"""Monitor: log-probs in, a report out once per optimizer step; `watch` for a plain loop."""

from klmonitor.monitor.core import Monitor

__all__ = ["Monitor"]
