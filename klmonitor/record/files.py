"""The files of a record."""

RUN = "run.json"
STEPS = "steps.jsonl"
TOKENS = "tokens.jsonl"
ALERTS = "alerts.jsonl"
MUTES = "mutes.jsonl"
NOTES = "notes.jsonl"
