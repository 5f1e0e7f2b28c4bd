"""Values of a run beside its log-probs, which rules and notices read: one table.

    monitor.step(17, run={"learning_rate": 1e-6, "beta": 0.04, "step_of_run": 16})

In a report they are ``run/{name}`` of `Report.run_values`. A value that is not given is unknown.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

STOP, CHECKPOINT = "stop", "checkpoint"
TABLE = {
    "learning_rate": "the learning rate of the update that follows this step's numbers",
    "beta": "the coefficient of the KL penalty, as it enters the objective",
    "step_of_run": "optimizer steps before this step's numbers: 0 only where the weights are those "
    "that training started from (a resumed run never says 0)",
    "updates": "optimizer steps so far, those of this step among them, where a step is not one",
    "reference_sync": "1 at the first step whose numbers are against a reference that was set anew "
    "on purpose",
    "dropout": "the largest rate of dropout that is active in the policy that is scored, 0 for "
    "none",
    "reference_dropout": "and in the reference",
    "bits": "of the narrowest number format that policy or reference compute or are stored in",
    STOP: "1 where `on_alert` has asked for it at the step before, on any rank",
    CHECKPOINT: "likewise",
}
"""Name -> what it is."""
PREFIX = "run/"
UNKNOWN = -math.inf


def checked(values: Mapping[str, Any]) -> dict[str, float]:
    """Values as numbers by name, those that are nan or None left out.

    Raises:
        ValueError: a name is unknown.
        TypeError: a value is no number, or `values` no table.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"run is {values!r}: give a table such as {{'learning_rate': 1e-6}}")
    found = {}
    for name, value in values.items():
        if name not in TABLE:
            near = difflib.get_close_matches(str(name), TABLE, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"unknown value of the run {name!r}: {hint}Choose from {', '.join(TABLE)}"
            )
        try:
            number = math.nan if value is None else float(value)
        except (TypeError, ValueError, OverflowError):
            raise TypeError(f"run[{name!r}] is {value!r}: give a number, or leave it out") from None
        if math.isfinite(number):
            found[name] = number
    return found


def encode(values: Mapping[str, float]) -> list[float]:
    """One number for each of `TABLE`, of which every rank learns the largest."""
    return [values.get(name, UNKNOWN) for name in TABLE]


def named(values: Mapping[str, float]) -> dict[str, float]:
    """Values by their names in a report, in the order of `TABLE`."""
    return {PREFIX + name: values[name] for name in TABLE if name in values}


def decode(numbers: Sequence[float]) -> dict[str, float]:
    """The values that numbers stand for, by their names in a report."""
    both = zip(TABLE, numbers, strict=True)
    return {PREFIX + name: number for name, number in both if number != UNKNOWN}
