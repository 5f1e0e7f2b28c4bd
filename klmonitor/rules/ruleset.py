"""Reports in, alerts out: every rule on every pair, one episode per kind and pair.

`RuleSet` is the only thing here that changes over time. It is a function of the reports it has
seen and of nothing else (no clock, no random number), so a replay of a record raises the same
alerts as the live run did, and a resumed run those that an uninterrupted one would have raised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from klmonitor.boundary import Boundary, HealthLog
from klmonitor.numbers.verdicts import verdict
from klmonitor.report import Alert, Cause, PairReport, Report
from klmonitor.rules.episode import END, Episode
from klmonitor.rules.own import judge_own, own_rule
from klmonitor.rules.rule import Finding, Rule, Thresholds
from klmonitor.rules.settings import Rules, parse_rules
from klmonitor.rules.silence import NO_DATA, Silence
from klmonitor.rules.spikes import SHIFT
from klmonitor.rules.table import RULES
from klmonitor.rules.track import Reading, Track, has_data
from klmonitor.rules.words import nats

STATE_VERSION = 1
BELIEVING = ("gap", "k1_excursion", "k1_negative", "outlier_rate")
"""Rules that take log-probs for what they are called: not asked about input that cannot be."""
RUN = ""
"""In the place of a pair's name: what concerns the run."""


@dataclass(frozen=True)
class Judgement:
    """What the rules say about one step.

    Attributes:
        alerts: what opened or got worse.
        ended: episodes that ended (phase ``"end"``), for the record.
        scores: pair -> z of log k3 against its level; nan until there is a baseline.
        open_kinds: pair -> kinds of alert that are open on it after this step.
        errors: rules that raised, or were left out since they had.
    """

    alerts: tuple[Alert, ...] = ()
    ended: tuple[Alert, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    open_kinds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    errors: int = 0


class RuleSet:
    """All rules with their memory.

    Example:
        >>> rules = RuleSet({"preset": "quiet", "surge": False})
        >>> rules.judge(Report(step=0, pairs={})).alerts
        ()

    Args:
        rules: ``"default"``, ``"quiet"``, ``"sensitive"``, or a table of changes to one of them
            (see `klmonitor.rules.settings`).
        log: where a rule that raises is counted; it harms no other.

    Raises:
        ValueError: the table names a rule, a threshold or a pair that does not exist.
    """

    def __init__(self, rules: Rules = "default", log: HealthLog | None = None) -> None:
        self.settings = parse_rules(rules)
        self._limits = self.settings.thresholds
        log = log or HealthLog()
        self._judges = [
            _Guarded(rule, rule.judge, self._limits[rule.kind], _boundary(rule.kind, log))
            for rule in RULES
            if rule.judge is not None and rule.kind in self._limits
        ]
        self._silent = _boundary(NO_DATA.kind, log)
        self._functions = [own_rule(name, f) for name, f in self.settings.own.items()]
        self._tracks: dict[str, Track] = {}
        self._silence: dict[str, Silence] = {}
        self._episodes: dict[tuple[str, str], Episode] = {}

    def judge(self, report: Report) -> Judgement:
        """Judge one step against all earlier ones, then learn from it.

        Reports of evaluation are not part of the series and are not judged.
        """
        if report.phase != "train":
            return Judgement()
        said: list[Alert] = []
        scores: dict[str, float] = {}
        open_kinds: dict[str, tuple[str, ...]] = {}
        errors = 0
        present = {name: pair for name, pair in report.pairs.items() if has_data(pair)}
        for name, pair in present.items():
            track = self._track(name)
            reading, withheld = track.read(pair), set[str]()
            of_pair: list[Alert] = []
            for one in self._judges:
                if pair.cause.impossible and one.rule.kind in BELIEVING:
                    continue
                found = one.boundary(_found, one.judge, reading, one.limits)
                if found is None:
                    errors += 1
                    continue
                (finding,) = found
                if finding is not None and finding.level:
                    withheld.update(one.rule.withholds)
                if finding is not None or (one.rule.kind, name) in self._episodes:
                    of_pair += self._announce(report.step, one.rule, name, finding, pair)
            scores[name] = reading.score.z
            track.take(reading, withheld)
            open_kinds[name] = self._open_on(name)
            believe = verdict(pair.values, open_kinds[name], pair.cause).text
            said += (_believing(alert, believe, pair.cause) for alert in of_pair)
        silences = self._silent(self._silences, report.step, present)
        errors += silences is None
        said += silences or ()
        said += self._own(report)
        return Judgement(
            alerts=tuple(alert for alert in said if alert.phase != END),
            ended=tuple(alert for alert in said if alert.phase == END),
            scores=scores,
            open_kinds=open_kinds,
            errors=errors,
        )

    def _open_on(self, pair: str) -> tuple[str, ...]:
        """Kinds of alert that are open on a pair."""
        return tuple(
            kind for (kind, of), episode in self._episodes.items() if of == pair and episode.active
        )

    def _silences(self, step: int, present: Container[str]) -> list[Alert]:
        """Pairs that fell silent; the run, while no pair ever had data."""
        if NO_DATA.kind not in self._limits:
            return []
        said: list[Alert] = []
        if self._tracks and self._silence.pop(RUN, None) is not None:
            said += self._announce(step, NO_DATA, RUN, None)
        for name in self._tracks or (RUN,):
            silence = self._silence.setdefault(name, Silence())
            silence.advance(name in present)
            finding = silence.find(self._limits[NO_DATA.kind])
            said += self._announce(step, NO_DATA, name, finding)
        return said

    def _own(self, report: Report) -> list[Alert]:
        """The user's rules: one that raises is reported like any other finding."""
        said: list[Alert] = []
        for rule, function in self._functions:
            finding = judge_own(function, report)
            said += self._announce(report.step, rule, RUN, finding)
        return said

    def _track(self, name: str) -> Track:
        if name not in self._tracks:
            shift = self._limits.get(SHIFT.kind, SHIFT.thresholds)
            self._tracks[name] = Track(shift["z"], shift["rearm"])
        return self._tracks[name]

    def _announce(
        self,
        step: int,
        rule: Rule,
        pair: str,
        finding: Finding | None,
        numbers: PairReport | None = None,
    ) -> tuple[Alert, ...]:
        """Advance the episode of one kind of one pair, and say what there is to say."""
        key = (rule.kind, pair)
        episode = self._episodes.get(key)
        if episode is None:
            if finding is None or not finding.level:
                return ()
            episode = self._episodes[key] = Episode()
        level = None if finding is None else finding.level
        cooldown = self._limits.get(rule.kind, {}).get("cooldown", rule.cooldown)
        phase = episode.advance(step, level, cooldown, rule.calm_for)
        if phase == END:
            return (_end(step, rule, pair, episode, numbers),)
        if phase is None or finding is None:
            return ()
        return (_alert(step, rule, pair, finding, phase, episode.since),)

    def state_dict(self) -> dict[str, Any]:
        """Baselines and episodes as lists and numbers, ready for JSON."""
        return {
            "version": STATE_VERSION,
            "tracks": {name: track.state_dict() for name, track in self._tracks.items()},
            "silence": {name: one.state_dict() for name, one in self._silence.items()},
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
        self._silence = {name: Silence(**body) for name, body in state["silence"].items()}
        self._episodes = {}
        for row in state["episodes"]:
            fields = {key: value for key, value in row.items() if key not in ("kind", "pair")}
            self._episodes[row["kind"], row["pair"]] = Episode(**fields)


class _Guarded(NamedTuple):
    """A rule of the table, with its thresholds here and the boundary that it is called through."""

    rule: Rule
    judge: Callable[[Reading, Thresholds], Finding | None]
    limits: Thresholds
    boundary: Boundary


def _boundary(kind: str, log: HealthLog) -> Boundary:
    return Boundary(f"the rule {kind}", log, done_without="the others go on")


def _found(
    judge: Callable[[Reading, Thresholds], Finding | None], reading: Reading, limits: Thresholds
) -> tuple[Finding | None]:
    """What a rule finds, told apart from the None of a boundary."""
    return (judge(reading, limits),)


def _believing(alert: Alert, believe: str, cause: Cause) -> Alert:
    """An alert with the verdict, and the cause where it does not say that itself."""
    if alert.phase == END:
        return alert
    why = "" if cause.text in alert.message else cause.text
    return replace(alert, believe=alert.believe or believe, cause=why)


def _named(pair: str, message: str) -> str:
    return f"{pair}: {message}" if pair else message


def _alert(step: int, rule: Rule, pair: str, finding: Finding, phase: str, since: int) -> Alert:
    return Alert(
        step=step,
        kind=rule.kind,
        severity=finding.severity,
        pair=finding.pair or pair or None,
        message=_named(pair, finding.message),
        believe=finding.believe,
        action=finding.action or rule.action,
        means=finding.means or rule.means,
        source=rule.source,
        phase=phase,
        since=since,
        values={key: value for key, value in finding.values.items() if not math.isnan(value)},
        tokens=tuple(token.with_text(None) for token in finding.tokens),
    )


def _end(step: int, rule: Rule, pair: str, episode: Episode, numbers: PairReport | None) -> Alert:
    message = f"{rule.kind} over; it was open since step {episode.since}"
    if numbers is not None and not math.isnan(numbers["k3/mean"]):
        message += f"; k3 is now {nats(numbers['k3/mean'])} per token"
    return Alert(
        step=step,
        kind=rule.kind,
        severity="info",
        pair=pair or None,
        message=_named(pair, message),
        source=rule.source,
        phase=END,
        since=episode.since,
    )
