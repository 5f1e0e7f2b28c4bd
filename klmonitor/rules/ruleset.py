"""Reports in, alerts out: every rule on every pair, one episode per kind and pair.

`RuleSet` is the only thing here that changes over time. It is a function of the reports it has
seen and of nothing else (no clock, no random number), so a replay of a record raises the same
alerts as the live run did, and a resumed run those that an uninterrupted one would have raised.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from klmonitor.report import Alert, Report
from klmonitor.rules.episode import END, Episode
from klmonitor.rules.rule import Finding, Rule
from klmonitor.rules.settings import Rules, parse_rules
from klmonitor.rules.table import RULES
from klmonitor.rules.track import Reading, Track

STATE_VERSION = 1
FLAGGING = frozenset({"spike", "surge"})
"""Kinds whose finding keeps the step out of the baseline of log k3."""


@dataclass(frozen=True)
class Judgement:
    """What the rules say about one step.

    Attributes:
        alerts: what opened or got worse.
        ended: episodes that ended (phase ``"end"``), for the record.
        scores: pair -> z of log k3 against its level; nan until there is a baseline.
    """

    alerts: tuple[Alert, ...] = ()
    ended: tuple[Alert, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)


class RuleSet:
    """All rules with their memory.

    Example:
        >>> rules = RuleSet({"preset": "quiet", "surge": False})
        >>> rules.judge(Report(step=0, pairs={})).alerts
        ()

    Args:
        rules: ``"default"``, ``"quiet"``, ``"sensitive"``, or a table of changes to one of them
            (see `klmonitor.rules.settings`).

    Raises:
        ValueError: the table names a rule, a threshold or a pair that does not exist.
    """

    def __init__(self, rules: Rules = "default") -> None:
        self.settings = parse_rules(rules)
        self._rules = [rule for rule in RULES if rule.kind in self.settings.thresholds]
        self._tracks: dict[str, Track] = {}
        self._episodes: dict[tuple[str, str], Episode] = {}

    def judge(self, report: Report) -> Judgement:
        """Judge one step against all earlier ones, then learn from it.

        Reports of evaluation are not part of the series and are not judged.
        """
        if report.phase != "train":
            return Judgement()
        said: list[Alert] = []
        scores: dict[str, float] = {}
        for name, pair in report.pairs.items():
            track = self._track(name)
            reading = track.read(pair)
            findings = self._findings(reading)
            said += self._announce(report.step, name, findings)
            scores[name] = reading.score.z
            track.take(reading, flagged=any(_flags(*item) for item in findings))
        return Judgement(
            alerts=tuple(alert for alert in said if alert.phase != END),
            ended=tuple(alert for alert in said if alert.phase == END),
            scores=scores,
        )

    def _track(self, name: str) -> Track:
        if name not in self._tracks:
            shift = {**_DEFAULT_SHIFT, **self.settings.thresholds.get("shift", {})}
            self._tracks[name] = Track(shift["z"], shift["rearm"])
        return self._tracks[name]

    def _findings(self, reading: Reading) -> list[tuple[Rule, Finding | None]]:
        thresholds = self.settings.thresholds
        return [(rule, rule.judge(reading, thresholds[rule.kind])) for rule in self._rules]

    def _announce(
        self, step: int, pair: str, findings: list[tuple[Rule, Finding | None]]
    ) -> list[Alert]:
        said = []
        for rule, finding in findings:
            key = (rule.kind, pair)
            episode = self._episodes.get(key)
            if episode is None:
                if finding is None or not finding.level:
                    continue
                episode = self._episodes[key] = Episode()
            level = None if finding is None else finding.level
            phase = episode.advance(step, level, rule.cooldown, rule.calm_for)
            if phase == END:
                said.append(_end(step, rule, pair, episode))
            elif phase is not None and finding is not None:
                said.append(_alert(step, rule, pair, finding, phase, episode.since))
        return said

    def state_dict(self) -> dict[str, Any]:
        """Baselines and episodes as lists and numbers, ready for JSON."""
        return {
            "version": STATE_VERSION,
            "tracks": {name: track.state_dict() for name, track in self._tracks.items()},
            "episodes": [
                {"kind": kind, "pair": pair, **episode.state_dict()}
                for (kind, pair), episode in self._episodes.items()
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; the thresholds stay this set's own.

        Raises:
            ValueError: the state was written by another version of the rules.
        """
        if state.get("version") != STATE_VERSION:
            raise ValueError(
                f"state of the rules has version {state.get('version')!r}, this is "
                f"{STATE_VERSION}: start with a fresh RuleSet"
            )
        self._tracks = {}
        for name, body in state["tracks"].items():
            self._track(name).load_state_dict(body)
        self._episodes = {}
        for row in state["episodes"]:
            fields = {key: value for key, value in row.items() if key not in ("kind", "pair")}
            self._episodes[row["kind"], row["pair"]] = Episode(**fields)


_DEFAULT_SHIFT = next(rule.thresholds for rule in RULES if rule.kind == "shift")


def _flags(rule: Rule, finding: Finding | None) -> bool:
    return rule.kind in FLAGGING and finding is not None and finding.level > 0


def _alert(step: int, rule: Rule, pair: str, finding: Finding, phase: str, since: int) -> Alert:
    return Alert(
        step=step,
        kind=rule.kind,
        severity=finding.severity,
        pair=pair,
        message=f"{pair}: {finding.message}",
        believe=finding.believe,
        action=rule.action,
        source=rule.source,
        phase=phase,
        since=since,
        values={key: value for key, value in finding.values.items() if not math.isnan(value)},
        tokens=tuple(replace(token, text=None) for token in finding.tokens),
    )


def _end(step: int, rule: Rule, pair: str, episode: Episode) -> Alert:
    return Alert(
        step=step,
        kind=rule.kind,
        severity="info",
        pair=pair,
        message=f"{pair}: {rule.kind} over; it was open since step {episode.since}",
        source=rule.source,
        phase=END,
        since=episode.since,
    )
