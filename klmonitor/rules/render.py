"""An alert as Markdown, for messages that people read, and as JSON, for what machines read.

Plain text is `Alert.text`. None of them holds the text of a token: positions and ids only.
"""

from __future__ import annotations

import json

from klmonitor.report import Alert, ExtremeToken, alert_to_row


def alert_markdown(alert: Alert) -> str:
    """Headline, message, what to believe and do, and a table of the tokens named."""
    head = " · ".join(
        part for part in (alert.severity, alert.kind, alert.pair, f"step {alert.step}") if part
    )
    lines = [f"**{head}**", "", alert.message]
    if alert.lines:
        lines += ["", *(f"- **{label}:** {value}" for label, value in alert.lines)]
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


def alert_json(alert: Alert) -> str:
    """One line of JSON, as in ``alerts.jsonl``."""
    return json.dumps(alert_to_row(alert), allow_nan=False)
