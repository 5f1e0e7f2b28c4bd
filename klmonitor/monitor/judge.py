"""What the rules say of a training step, and what they remember from one to the next."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from klmonitor.boundary import Boundary, HealthLog
from klmonitor.numbers.explain import judged
from klmonitor.record.mutes import Mute, in_force
from klmonitor.record.notices import Notice
from klmonitor.report import Alert, Report
from klmonitor.rules import Judgement, RuleSet
from klmonitor.rules.mutes import marked
from klmonitor.rules.notices import RunNotices


class Judge:
    """The rules of one run, with its notices.

    Args:
        rules: with their memory.
        log: where failures are counted.
        strict: raise instead of counting them.

    Attributes:
        rules: these.
    """

    def __init__(self, rules: RuleSet, log: HealthLog, strict: bool) -> None:
        self.rules = rules
        self._log, self._strict = log, strict
        self._judging, self._reading = (
            Boundary(name, log, patience=None, strict=strict) for name in ("rules", "notes")
        )
        self._notices = RunNotices()

    def of(self, report: Report, mutes: Collection[Mute]) -> tuple[Report, tuple[Alert, ...]]:
        """A step's report with its alerts and each pair's verdict, and the episodes that ended.

        Args:
            report: of training, with its numbers.
            mutes: what people have muted in the run directory.
        """
        found = self._judging(self.rules.judge, report)
        judgement = Judgement(errors=1) if found is None else found
        muted = in_force(self.rules.settings.mute, mutes)
        alerts, ended = (marked(some, muted) for some in (judgement.alerts, judgement.ended))
        pairs = {
            name: judged(
                pair,
                judgement.open_kinds.get(name, ()),
                {"spike/z": judgement.scores.get(name, math.nan)},
            )
            for name, pair in report.pairs.items()
        }
        told = float(sum(not one.muted for one in alerts))
        run_values = {**report.run_values, "kl/alerts": told}
        if judgement.errors:
            run_values["klmonitor/rule_errors"] = float(judgement.errors)
        return report.changed(pairs=pairs, alerts=alerts, run_values=run_values), ended

    def notices(self, report: Report) -> Iterable[Notice]:
        """What changed in the run with a step, for its time line."""
        return self._reading(self._notices.read, report) or ()

    def state_dict(self) -> dict[str, Any]:
        """Baselines, episodes and notices, as JSON-able data."""
        return {"rules": self.rules.state_dict(), "notices": self._notices.state_dict()}

    def resumed(self, state: Mapping[str, Any], step: Any) -> Judge:
        """Another one that continues where `state_dict` was taken.

        Args:
            state: holds what `state_dict` gave.
            step: the last one of it.

        Raises:
            ValueError: the state is of another version, or damaged; `load_state_dict` of the rules
                has the other kinds of error that damage makes.
        """
        found = Judge(self.rules.fresh(), self._log, self._strict)
        found.rules.load_state_dict(state["rules"])
        found._notices.resume(state.get("notices", {}), step)
        return found
