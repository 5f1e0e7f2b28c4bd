"""The form of ``klmonitor status --json`` (``klmonitor.status/1``) as a JSON Schema."""

from __future__ import annotations

from collections.abc import Iterable

from klmonitor.report import Row

NULLABLE_NUMBER: Row = {"type": ["number", "null"]}
NULLABLE_INTEGER: Row = {"type": ["integer", "null"]}
NULLABLE_TEXT: Row = {"type": ["string", "null"]}
TEXT: Row = {"type": "string"}
TEXTS: Row = {"type": "array", "items": TEXT}
COUNT: Row = {"type": "integer", "minimum": 0}
BOOLEAN: Row = {"type": "boolean"}
SEVERITY: Row = {"enum": ["info", "warn", "critical"]}
LEVEL: Row = {"enum": ["fine", "warn", "critical", "unreadable"]}


def form(properties: Row, optional: Iterable[str] = ()) -> Row:
    """An object with these keys; a reader ignores those that it does not know."""
    return {
        "type": "object",
        "properties": properties,
        "required": [key for key in properties if key not in optional],
    }


PAIR = form(
    {
        "step": {"type": "integer", "description": "the last step that has the pair"},
        **{
            key: NULLABLE_NUMBER | {"description": text}
            for key, text in {
                "k1": "mean, nats per token",
                "k1_se": "its standard error",
                "k2": "mean, nats per token",
                "k3": "mean, nats per token",
                "k3_se": "its standard error",
                "tokens": "tokens counted",
                "sequences": "sequences counted",
                "dominance": "whether a few tokens carry k1 or k3: 0 no, 1 warn, 2 severe",
                "spike_z": "scales above the level that was expected",
            }.items()
        },
        "believe": {"enum": ["k1", "k3", "cv", None], "description": "null: neither, or unknown"},
        "verdict": TEXT | {"description": "the same in words; empty: unknown"},
        "cause": NULLABLE_TEXT | {"description": "why the two policies disagree"},
        "cause_name": NULLABLE_TEXT | {"description": "short and stable"},
        "open": TEXTS | {"description": "kinds of alert that are open"},
    }
)
ALERT = form(
    {
        "kind": TEXT | {"description": "docs/alerts.md"},
        "kinds": TEXTS | {"description": "all that are still open of this event"},
        "severity": SEVERITY,
        "pair": NULLABLE_TEXT | {"description": "null: the run"},
        "since": {"type": "integer", "description": "step at which the event began"},
        "step": {"type": "integer", "description": "step at which it was last told"},
        "message": TEXT,
        "cause": NULLABLE_TEXT,
        "believe": NULLABLE_TEXT,
        "do": NULLABLE_TEXT | {"description": "what to do first"},
        "muted": BOOLEAN,
    }
)
RAISED = form(
    {
        "pair": TEXT,
        "since": {"type": "integer", "description": "step at which it rose"},
        "k3": {"type": "number", "description": "now, nats per token, median of three steps"},
        "before": {"type": "number", "description": "before it rose, nats per token"},
        "message": TEXT,
        "do": TEXT | {"description": "what to do first"},
    }
)
RUN = form(
    {
        "run": TEXT,
        "path": TEXT,
        "level": LEVEL,
        "error": NULLABLE_TEXT | {"description": "why it is unreadable"},
        "steps": COUNT,
        "first_step": NULLABLE_INTEGER,
        "last_step": NULLABLE_INTEGER,
        "last_time": NULLABLE_NUMBER | {"description": "seconds since the epoch"},
        "age_s": NULLABLE_NUMBER | {"description": "seconds since the last row"},
        "pairs": {"type": "object", "additionalProperties": PAIR},
        "open_alerts": {"type": "array", "items": ALERT},
        "raised": {
            "type": "array",
            "items": RAISED,
            "description": "rises that were told, are not open and never came back",
        },
        "alerts": form(dict.fromkeys(("info", "warn", "critical"), COUNT)),
        "health": form({"active": BOOLEAN, "errors": COUNT, "dropped": COUNT, "bad_lines": COUNT}),
        "remarks": TEXTS | {"description": "of the record itself: lines skipped, rows missing"},
        "do": TEXTS | {"description": "what to do, the most urgent first"},
    }
)
STATUS: Row = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "klmonitor status --json",
    **form(
        {
            "schema": {"const": "klmonitor.status/1"},
            "level": LEVEL | {"description": "of the worst run that is readable"},
            "exit": {"enum": [0, 2, 10, 11]},
            "runs": {"type": "array", "items": RUN},
        }
    ),
}
