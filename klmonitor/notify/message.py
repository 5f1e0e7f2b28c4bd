"""What a receiver is told: an alert, with the run that raised it."""

from __future__ import annotations

import re
import socket
from typing import Any

from klmonitor.record.rows import alert_to_row
from klmonitor.report import Alert, ExtremeToken
from klmonitor.terminal import inert

Message = dict[str, Any]
"""JSON: title, text, markdown, severity, run, host, id, alert (as in ``alerts.jsonl``)."""


def chat(text: str) -> str:
    """Text that others wrote, on one line, inert for chats: no mention, link or markup of theirs.

    ``<`` and ``>`` stay where they compare numbers.
    """
    found = inert(" ".join(text.split()))
    found = found.replace("@", "\uff20").replace("](", "] (").replace("`", "'")
    return re.sub(r"<(?=[^\s=\d.-])", "\u2039", found)


def make_message(alert: Alert, run: str = "") -> Message:
    """A message without the text of any token.

    Args:
        alert: what to tell.
        run: what to call the run: its directory.
    """
    pair = f" ({alert.pair})" if alert.pair else ""
    worse = " got worse" if alert.phase == "worse" else ""
    return {
        "title": chat(
            f"klmonitor {alert.severity}: {alert.kind}{worse} at step {alert.step}{pair}"
        ),
        "text": "\n".join([*map(_inert_line, alert.text().split("\n")), *_origin(run)]),
        "markdown": "\n".join([alert_markdown(alert), "", *_origin(run)]),
        "severity": alert.severity,
        "run": run,
        "host": socket.gethostname(),
        "id": f"{run}:{alert.step}:{alert.kind}:{alert.pair or ''}:{alert.phase}",
        "alert": alert_to_row(alert),
    }


def _inert_line(line: str) -> str:
    """A line of an alert, its indentation kept."""
    return line[: len(line) - len(line.lstrip(" "))] + chat(line)


def _origin(run: str) -> list[str]:
    return [f"run {chat(run) or 'without a record'} on {socket.gethostname()}"]


def alert_markdown(alert: Alert) -> str:
    """Headline, message, what to believe and do, and a table of the tokens named."""
    head = " · ".join(
        part for part in (alert.severity, alert.kind, alert.pair, f"step {alert.step}") if part
    )
    lines = [f"**{chat(head)}**", "", chat(alert.message)]
    if alert.lines:
        lines += ["", *(f"- **{label}:** {chat(value)}" for label, value in alert.lines)]
    if alert.tokens:
        lines += [
            "",
            "| d = log p - log q | log q | log p | token id | where |",
            "|---:|---:|---:|---:|---|",
            *(_row(token) for token in alert.tokens),
        ]
    return "\n".join(lines)


def _row(token: ExtremeToken) -> str:
    place = f"micro-batch {token.micro_batch}, sequence {token.sequence}, position {token.position}"
    if token.rank:
        place = f"rank {token.rank}, {place}"
    ident = "" if token.token_id is None else str(token.token_id)
    return f"| {token.log_ratio:+.4g} | {token.log_q:.4g} | {token.log_p:.4g} | {ident} | {place} |"
