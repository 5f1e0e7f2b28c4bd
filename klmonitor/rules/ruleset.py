"""Reports in, alerts out: every rule on every pair, one episode per kind and pair.

`RuleSet` is the only thing here that changes over time. It is a function of the reports it has
seen and of nothing else (no clock, no random number), so a replay of a record raises the same
alerts as the live run did, and a resumed run those that an uninterrupted one would have raised.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from klmonitor.boundary import Boundary, HealthLog, each
from klmonitor.numbers.verdicts import verdict
from klmonitor.report import Alert, Report
from klmonitor.rules.causes import IMPOSSIBLE
from klmonitor.rules.episode import END, Episode
from klmonitor.rules.health import INACTIVE, inactive
from klmonitor.rules.own import judge_own, own_rule
from klmonitor.rules.rule import SIMMERING, Finding, Rule
from klmonitor.rules.settings import Rules, parse_rules
from klmonitor.rules.silence import NO_DATA, Silence
from klmonitor.rules.standing import standing
from klmonitor.rules.story import Found, Story, alone
from klmonitor.rules.table import RULES
from klmonitor.rules.telling import believing, ended, naming_group, restrained, told
from klmonitor.rules.track import Reading, Track, finite, has_data, to_reference

STATE_VERSION = 2
READS = (1, STATE_VERSION)
"""Versions of a state that are read; the first had neither stories nor counts of tokens."""
DESPITE = ("impossible", "nonfinite")
"""Rules that are asked about input that cannot be; the others take log-probs for what they are
called."""
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
        self._given, self._log = rules, log or HealthLog()
        self.settings = parse_rules(rules)
        self._limits = self.settings.thresholds
        log = self._log
        self._rules = [
            rule for rule in RULES if rule.judge is not None and rule.kind in self._limits
        ]
        self._judges = [
            (_boundary(rule.kind, log), rule.judge, self._limits[rule.kind])
            for rule in self._rules
            if rule.judge is not None
        ]
        self._silent = _boundary(NO_DATA.kind, log)
        self._functions = [own_rule(name, f) for name, f in self.settings.own.items()]
        self._tracks: dict[str, Track] = {}
        self._silence = defaultdict[str, Silence](Silence)
        self._episodes: dict[tuple[str, str], Episode] = {}
        self._stories = defaultdict[str, Story](Story)

    def fresh(self) -> RuleSet:
        """The same rules without any memory."""
        return RuleSet(self._given, self._log)

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
            track = self._track(name, report.run_values)
            reading = track.read(pair, report.run_values)
            findings, failed = self._findings(reading)
            of_pair = self._announced(report.step, name, reading, findings)
            scores[name] = reading.score.z
            track.take(
                reading, {what for rule, one in findings if one.level for what in rule.withholds}
            )
            open_kinds[name] = self._open_on(name)
            if of_pair:
                believe = verdict(pair.values, open_kinds[name], pair.cause).text
                said += (believing(alert, believe, pair.cause) for alert in of_pair)
            errors += failed
        silences = self._silent(self._silences, report.step, present)
        errors += silences is None
        said += silences or ()
        if INACTIVE.kind in self._limits:
            said += self._of_run(report.step, INACTIVE, RUN, inactive(report))
        said += self._own(report)
        return Judgement(
            alerts=tuple(alert for alert in said if alert.phase != END),
            ended=tuple(alert for alert in said if alert.phase == END),
            scores=scores,
            open_kinds=open_kinds,
            errors=errors,
        )

    def standing(self, pairs: Iterable[str] = ()) -> dict[str, str]:
        """Pair -> from when its rules judge, of pairs that were seen and of some that will be."""
        seen = dict.fromkeys(pairs, 0) | {name: one.steps for name, one in self._tracks.items()}
        return {name: standing(steps, self._limits) for name, steps in seen.items()}

    def _findings(self, reading: Reading) -> tuple[list[tuple[Rule, Finding]], int]:
        """What the rules find on a pair, calm ones left out; and how many of them failed."""
        pair, rules, judges = reading.pair, self._rules, self._judges
        if pair.impossible:
            rules = [rule for rule in rules if rule.kind in DESPITE]
            judges = [self._judges[self._rules.index(rule)] for rule in rules]
        findings = [
            (rule, finding if rule.of_one else restrained(finding, pair, rule))
            for rule, finding in zip(rules, each(judges, reading), strict=True)
            if finding is not None
        ]
        return findings, sum([boundary.failing for boundary, *_ in judges])

    def _announced(
        self, step: int, name: str, reading: Reading, findings: Sequence[tuple[Rule, Finding]]
    ) -> list[Alert]:
        """Advance the episodes of all kinds of a pair: what ended, and what there is to tell."""
        by_kind, pair = {rule.kind: finding for rule, finding in findings}, reading.pair
        said: list[Alert] = []
        of_story: list[Found] = []
        kinds = by_kind.keys() | {kind for kind, of in self._episodes if of == name}
        for rule in [rule for rule in self._rules if rule.kind in kinds]:
            finding = by_kind.get(rule.kind)
            size = finite(pair["k3/mean"]) if finding and not math.isnan(finding.base) else 0.0
            phase, episode = self._advance(step, rule, name, finding, size)
            if episode is None:
                continue
            if phase == END:
                said.append(ended(step, rule, name, episode.since, pair))
            elif finding is not None and finding.level:
                found = Found(rule, finding, phase, episode.since)
                if rule.joins_story:
                    of_story.append(found)
                elif phase:
                    said.append(told(step, name, alone(found)))
        story = self._stories[name]
        telling = story.take(step, finite(pair["k3/mean"]), of_story, reading.seen)
        if telling:
            said.insert(0, told(step, name, naming_group(telling, pair)))
        return sorted(said, key=lambda alert: alert.kind != IMPOSSIBLE.kind)

    def _open_on(self, pair: str) -> tuple[str, ...]:
        """Kinds of alert that are open on a pair."""
        return tuple(
            kind for (kind, of), episode in self._episodes.items() if of == pair and episode.active
        )

    def _silences(self, step: int, present: Collection[str]) -> list[Alert]:
        """The run, where no pair has data; else pairs that fell silent while others have some."""
        limits = self._limits.get(NO_DATA.kind)
        if limits is None:
            return []
        run = self._silence[RUN]
        run.advance(bool(present))
        said = [*self._of_run(step, NO_DATA, RUN, run.find_of_run(limits))]
        for name in self._tracks:
            silence = self._silence[name]
            silence.advance(name in present)
            finding = silence.find(limits)
            if run.steps and finding is not None:
                finding = SIMMERING  # it is the run that is silent
            said += self._of_run(step, NO_DATA, name, finding)
        return said

    def _own(self, report: Report) -> list[Alert]:
        """The user's rules: one that raises is reported like any other finding."""
        said: list[Alert] = []
        for rule, function in self._functions:
            finding = judge_own(function, report)
            said += self._of_run(report.step, rule, RUN, finding)
        return said

    def _track(self, name: str, run: Mapping[str, float]) -> Track:
        track = self._tracks.get(name)
        if track is None:
            track = self._tracks[name] = Track()
        if run.get("run/reference_sync") == 1 and to_reference(name):
            track.restart()
        return track

    def _of_run(
        self, step: int, rule: Rule, pair: str, finding: Finding | None
    ) -> tuple[Alert, ...]:
        """What there is to say of a kind that is not found in what a step measured."""
        phase, episode = self._advance(step, rule, pair, finding, 0.0)
        if episode is None or phase is None:
            return ()
        if phase == END or finding is None:
            return (ended(step, rule, pair, episode.since),)
        return (told(step, pair, alone(Found(rule, finding, phase, episode.since))),)

    def _advance(
        self, step: int, rule: Rule, pair: str, finding: Finding | None, size: float
    ) -> tuple[str | None, Episode | None]:
        """Advance the episode of one kind of one pair; None where there is none yet."""
        key = (rule.kind, pair)
        episode = self._episodes.get(key)
        if episode is None:
            if finding is None or not finding.level:
                return None, None
            episode = self._episodes[key] = Episode()
        level = None if finding is None else finding.level
        cooldown = self._limits.get(rule.kind, {}).get("cooldown", rule.cooldown)
        return episode.advance(step, level, cooldown, rule.calm_for, size), episode

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
            "stories": [
                {"pair": name, **story.state_dict()} for name, story in self._stories.items()
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; the thresholds stay this set's own.

        Raises:
            ValueError: the state was written by another version of the rules.
        """
        if state.get("version") not in READS:
            raise ValueError(
                f"state of the rules has version {state.get('version')!r}, this is "
                f"{STATE_VERSION}: start with a fresh RuleSet"
            )
        self._tracks = {}
        for name, body in state["tracks"].items():
            self._track(name, {}).load_state_dict(body)
        silence = {name: Silence.from_state(body) for name, body in state["silence"].items()}
        self._silence = defaultdict(Silence, silence)
        self._episodes = {}
        for row in state["episodes"]:
            fields = {key: value for key, value in row.items() if key not in ("kind", "pair")}
            self._episodes[row["kind"], row["pair"]] = Episode.from_state(fields)
        self._stories = defaultdict(Story)
        for row in state.get("stories", ()):
            fields = {key: value for key, value in row.items() if key != "pair"}
            self._stories[row["pair"]] = Story.from_state(fields)


def _boundary(kind: str, log: HealthLog) -> Boundary:
    return Boundary(f"the rule {kind}", log, done_without="the others go on")
