"""Findings as alerts: their words, and what a critical one needs."""

from __future__ import annotations

import math
from dataclasses import replace

from klmonitor.numbers.carriers import group_apart
from klmonitor.numbers.verdicts import UNKNOWN_SAMPLER
from klmonitor.report import Alert, Cause, PairReport
from klmonitor.rules.episode import END, OPEN, WORSE
from klmonitor.rules.rule import WARN, Finding, Rule
from klmonitor.rules.story import Telling
from klmonitor.rules.words import count, nats

LEAST_TOKENS, LEAST_SEQUENCES, LEAST_CLUSTERS = 64, 4, 2
"""What a critical alert rests on at least, where it is known: what fewer tokens, sequences or
clusters (prompts, where they are known) say may be their accident."""


OF_KL = frozenset(("spike", "surge", "shift", "drift", "runaway", "limit", "k1_excursion"))
"""Kinds that tell of the level of KL: where one declared group makes most of it, they name it."""
UNTOLD = ("unknown", "identical", "coarse or stale", UNKNOWN_SAMPLER)
"""Causes that name nothing that one could mend: what an alert usually means stays beside them."""
OF_THEIR_OWN = ("nonfinite", "low_precision", "dominance_k1", "dominance_k3")
"""Kinds that a cause of mismatch does not explain."""


def restrained(finding: Finding, pair: PairReport, rule: Rule) -> Finding:
    """A finding that is not critical where too few tokens say so.

    Tokens that are not finite, and the sequences that have no others, are in no count: they are
    evidence of `nonfinite` alone, which asks for no sequences where they are the most.
    """
    if finding.severity != "critical":
        return finding
    excluded = max(pair["nonfinite"], 0.0) if rule.of_excluded else 0.0
    counted = [(pair["tokens"] + excluded, "token", LEAST_TOKENS)]
    if not excluded > pair["tokens"]:
        counted += [
            (pair["sequences"], "sequence", LEAST_SEQUENCES),
            (pair["clusters"], "cluster", LEAST_CLUSTERS),
        ]
    if not any(number < least for number, _, least in counted):
        return finding
    words = [count(number, noun) for number, noun, _ in counted if not math.isnan(number)]
    message = f"{finding.message}; a warning only, since it rests on {', '.join(words)}"
    return replace(finding, level=WARN, severity="warn", message=message)


def told(step: int, pair: str, telling: Telling) -> Alert:
    """The alert of what there is to tell of a pair, or of the run."""
    rule, finding = telling.parts[0].rule, telling.parts[0].finding
    why = next((one for one in telling.parts if one.rule.explains), telling.parts[0])
    values = {k: v for one in reversed(telling.parts) for k, v in one.finding.values.items()}
    tokens = next((one.finding.tokens for one in telling.parts if one.finding.tokens), ())
    begun, (means, action) = telling.continues, why.rule.words(pair, why.finding)
    return Alert(
        step=step,
        kind=rule.kind,
        kinds=tuple(one.rule.kind for one in telling.parts),
        severity=telling.severity,
        pair=finding.pair or pair or None,
        message=_named(pair, telling.message),
        believe=finding.believe,
        action=action,
        means=means,
        source=rule.source,
        phase=OPEN if begun is None else WORSE,
        since=step if begun is None else begun,
        values={key: value for key, value in values.items() if not math.isnan(value)},
        tokens=tuple(token.with_text(None) for token in tokens),
    )


def naming_group(telling: Telling, pair: PairReport) -> Telling:
    """What there is to tell of KL's level, with the declared group that makes most of it."""
    if OF_KL.isdisjoint(one.rule.kind for one in telling.parts):
        return telling
    found = group_apart(pair.values)
    return replace(telling, message=f"{telling.message}; {found}") if found else telling


def ended(step: int, rule: Rule, pair: str, since: int, numbers: PairReport | None = None) -> Alert:
    """The end of an episode, for the record."""
    message = f"{rule.kind} over; it was open since step {since}"
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
        since=since,
    )


def believing(alert: Alert, believe: str, cause: Cause) -> Alert:
    """An alert with the verdict, and the cause where it does not say that itself.

    What an alert usually means, and what is done first then, give way to a cause that is known.
    """
    if alert.phase == END:
        return alert
    alert = replace(alert, believe=alert.believe or believe)
    if not cause.text or cause.text in alert.message:
        return alert
    if cause.name in UNTOLD or alert.kind in OF_THEIR_OWN:
        return replace(alert, cause=cause.text)
    return replace(alert, cause=cause.text, means="", action="mend the cause first")


def _named(pair: str, message: str) -> str:
    return f"{pair}: {message}" if pair else message
