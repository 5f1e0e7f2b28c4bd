"""What a receiver is told: an alert, with the run that raised it."""

from __future__ import annotations

import socket
from typing import Any

from klmonitor.report import Alert, alert_to_row
from klmonitor.rules import alert_markdown

Message = dict[str, Any]
"""JSON: title, text, markdown, severity, run, host, id, alert (as in ``alerts.jsonl``)."""


def make_message(alert: Alert, run: str = "") -> Message:
    """A message without the text of any token.

    Args:
        alert: what to tell.
        run: what to call the run: its directory.
    """
    pair = f" ({alert.pair})" if alert.pair else ""
    worse = " got worse" if alert.phase == "worse" else ""
    return {
        "title": f"klmonitor {alert.severity}: {alert.kind}{worse} at step {alert.step}{pair}",
        "text": "\n".join([alert.text(), *_origin(run)]),
        "markdown": "\n".join([alert_markdown(alert), "", *_origin(run)]),
        "severity": alert.severity,
        "run": run,
        "host": socket.gethostname(),
        "id": f"{run}:{alert.step}:{alert.kind}:{alert.pair or ''}:{alert.phase}",
        "alert": alert_to_row(alert),
    }


def _origin(run: str) -> list[str]:
    return [f"run {run or 'without a record'} on {socket.gethostname()}"]
