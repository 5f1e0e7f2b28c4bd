"""What a run did that is certain, as notices: resumed, learning rate changed, reference moved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from klmonitor.numbers.runvalues import PREFIX
from klmonitor.record.notices import LEARNING_RATE, REFERENCE_SYNC, RESUME, Notice
from klmonitor.report import Report

RATE, SYNC, BEFORE = (PREFIX + name for name in (LEARNING_RATE, REFERENCE_SYNC, "step_of_run"))
CHANGE = 2.0
"""Times that a learning rate must have changed by."""
SLOPE = 2.0
"""Times the schedule's last change: a decay that ends at 0 halves the rate in its last steps."""


class RunNotices:
    """Reads reports in order and says what happened between them.

    A warm-up is over at the first step at which the learning rate does not rise.
    """

    def __init__(self) -> None:
        """Nothing seen."""
        self._rates: list[float] = []
        self._warm = False
        self._resumed: str | None = None
        self._begun = False

    def read(self, report: Report) -> list[Notice]:
        """What is certain to have happened at a step of training."""
        if not self._begun and report.run_values.get(BEFORE, 0.0) > 0:
            after = f"resumed after {report.run_values[BEFORE]:.0f} optimizer steps"
            self._resumed = self._resumed or after
        found = [] if self._resumed is None else [(RESUME, self._resumed)]
        self._resumed, self._begun = None, True
        rate = report.run_values.get(RATE, math.nan)
        if not math.isnan(rate):
            found += [(LEARNING_RATE, said) for said in self._changed(rate)]
        if report.run_values.get(SYNC, 0.0) > 0:
            found.append((REFERENCE_SYNC, "the reference was synchronised with the policy"))
        return [Notice(report.step, text, kind, report.time) for kind, text in found]

    def _changed(self, rate: float) -> list[str]:
        *earlier, last = self._rates or [math.nan]
        self._rates = [*self._rates[-1:], rate]
        self._warm = self._warm or rate <= last
        low, high = sorted((rate, last))
        slope = abs(last - earlier[0]) if earlier else 0.0
        jump = high >= CHANGE * low and high - low > SLOPE * slope
        return [f"learning rate {last:.3g} -> {rate:.3g}"] if self._warm and jump else []

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run compares with."""
        return {"rates": list(self._rates), "warm": self._warm}

    def resume(self, state: Mapping[str, Any], step: int | None) -> None:
        """Continue from what `state_dict` gave after a step, if known; the next report says so."""
        self._rates = [float(rate) for rate in state.get("rates", ())]
        self._warm = bool(state.get("warm", False))
        after = "" if step is None else f" after step {step}"
        self._resumed = f"resumed from the state saved{after}"
