"""A trainer's console log as rows: verl's lines, and the objects that HF trainers print.

    step:12 - actor/kl_loss:0.0013 - actor/ppo_kl:np.float64(-2e-05) - ...
    {'loss': 0.0, 'kl': 0.00029, 'epoch': 0.1}

Prefixes, colours and progress bars around them do no harm. HF's objects name no step: they are
numbered from 1 on.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from klmonitor.report import Row

COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
STEP_LINE = re.compile(r"\bstep:(\d+) - (.+)")
NUMPY = re.compile(r"np\.\w+\(([^()]+)\)")
NO_LITERAL = re.compile(r"(?<=[:\s])(-?(?:nan|inf))(?=\s*[,}])")
BARS = re.compile(r"[\r\n]")
"""A progress bar returns to the start of its line."""


def printed_rows(text: str) -> list[Row]:
    """The rows of a console log; none where no line is understood."""
    lines = [COLOUR.sub("", line) for line in BARS.split(text)]
    steps = [_step_row(found) for line in lines if (found := STEP_LINE.search(line))]
    if steps:
        return steps
    objects = [row for line in lines if (row := _object(line))]
    return [{"step": number, **row} for number, row in enumerate(objects, 1)]


def _step_row(found: re.Match[str]) -> Row:
    items = (item.rpartition(":") for item in found[2].split(" - "))
    values = {name.strip(): NUMPY.sub(r"\1", value.strip()) for name, _, value in items if name}
    return {"step": found[1], **values}


def _object(line: str) -> Row:
    """The object in a line, as Python or JSON prints it; empty where there is none."""
    text = line[line.find("{") : line.rfind("}") + 1]
    for parse in (json.loads, _literal):
        try:
            found: Any = parse(text)
        except (ValueError, SyntaxError):
            continue
        return found if isinstance(found, dict) else {}
    return {}


def _literal(text: str) -> Any:
    """What Python printed, NumPy's numbers and those that are not finite included."""
    return ast.literal_eval(NO_LITERAL.sub(r"'\1'", NUMPY.sub(r"\1", text)))
