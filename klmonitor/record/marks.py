"""Rows of ``steps.jsonl`` that are no reports: what happened to the record itself.

``{"row": "resumed", "step": 40}``: rows before this one, of step 40 on, were overwritten by a run
that was continued from an earlier state. ``"dropped"``: rows that were never written, how many and
why. ``"thinned"``: rows of steps before `step` were taken out again, for room, from `first` on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from klmonitor.report import Row

ROW = "row"
"""The key that a report's row does not have."""
RESUMED, DROPPED, THINNED = "resumed", "dropped", "thinned"


@dataclass(frozen=True)
class Mark:
    """Something that happened to the record.

    Attributes:
        kind: ``"resumed"``, ``"dropped"`` or ``"thinned"``.
        step: resumed: the first step that comes again; dropped: the last step written before;
            thinned: the first step that is whole.
        count: rows that are lost.
        why: the cause, in words.
        first: thinned: the first step that is not there any more.
        stride: thinned: of the steps before, those divisible by it were kept, and alerts'.
        time: seconds since the epoch.
    """

    kind: str
    step: int | None = None
    count: int = 0
    why: str = ""
    first: int | None = None
    stride: int = 1
    time: float = 0.0

    @property
    def text(self) -> str:
        """In a line."""
        if self.kind == DROPPED:
            where = "" if self.step is None else f" after step {self.step}"
            return f"{self.count} row{'' if self.count == 1 else 's'} dropped{where}: {self.why}"
        if self.kind == THINNED:
            return (
                f"not exact from step {self.first}: before step {self.step} one step of "
                f"{self.stride} was kept, and those with alerts ({self.why})"
            )
        return f"resumed: steps from {self.step} on were overwritten"


def mark_to_row(mark: Mark) -> Row:
    """A mark as a JSON object."""
    row: Row = {ROW: mark.kind, "step": mark.step, "time": mark.time or time.time()}
    if mark.kind != RESUMED:
        row |= {"count": mark.count, "why": mark.why}
    if mark.kind == THINNED:
        row |= {"first": mark.first, "stride": mark.stride}
    return row
