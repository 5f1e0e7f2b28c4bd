"""The run's record: a directory that outlives the run and is read without torch.

- ``run.json``: what was run (`meta`) and every start of it, with versions and alert rules;
- ``steps.jsonl``: one row a report, 4 KB a pair at most;
- ``tokens.jsonl``: the extreme tokens of each step, readable by the owner alone;
- ``alerts.jsonl``: openings, worsenings and ends of episodes;
- ``notes.jsonl``: dated notices of people and of the run, if there are any;
- ``mutes.jsonl``: what people have muted, likewise.

The failure contract: a directory that cannot be written fails at setup, in one line with the
remedy. Afterwards nothing raises and nothing blocks: rows are written by a thread of their own,
one ``write`` a row; a row that cannot be written is counted, reported once, and the next one is
tried. A row that counts as written survives ``kill -9``: all but those of the last moments, 0.2 s
where steps are shorter than that.
"""

from klmonitor.record.achieved import Achieved
from klmonitor.record.files import ALERTS, MUTES, NOTES, RUN, STEPS, TOKENS
from klmonitor.record.reader import RunRecord, read_run
from klmonitor.record.writer import RecordWriter

__all__ = [
    "ALERTS",
    "MUTES",
    "NOTES",
    "RUN",
    "STEPS",
    "TOKENS",
    "Achieved",
    "RecordWriter",
    "RunRecord",
    "read_run",
]
