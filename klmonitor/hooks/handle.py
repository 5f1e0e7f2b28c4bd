"""What `klmonitor.attach` returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from klmonitor.monitor import Monitor
from klmonitor.report import text_html


@dataclasses.dataclass(frozen=True)
class Handle:
    """A trainer that is being watched.

    Attributes:
        monitor: the `Monitor` that sums, judges and records.
        detach: leave the trainer as it was before `attach`, and close the monitor. Harmless when
            called again.
        describe: what was bound, what was not and why, as text.
    """

    monitor: Monitor
    detach: Callable[[], None]
    describe: Callable[[], str]

    def _repr_html_(self) -> str:
        """What a notebook shows: the description."""
        return text_html(self.describe())
