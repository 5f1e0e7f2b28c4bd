"""What a step found of each pair, and the step with all its pairs and alerts."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

from klmonitor.report.alert import Alert
from klmonitor.report.markup import table_html, text_html
from klmonitor.report.tokens import ExtremeToken, ExtremeTokens
from klmonitor.report.values import joined

T = TypeVar("T")


@dataclass(frozen=True)
class Estimate:
    """One estimator's numbers at one step, in nats per token (variances in nats^2).

    Attributes:
        mean: token mean over this step.
        se: cluster standard error of `mean` (by prompt if prompts are known, else by sequence).
        var: sample variance of this step's tokens.
        running_mean: exponentially weighted mean over steps, pooled over tokens.
        running_var: exponentially weighted variance over steps, drift between steps included.
    """

    mean: float
    se: float
    var: float
    running_mean: float
    running_var: float


@dataclass(frozen=True)
class Verdict:
    """Which estimator to believe at a step (`klmonitor.numbers.verdicts`).

    Attributes:
        estimator: ``"k1"``, ``"k3"`` or ``"cv"``; None: neither, or too little is known.
        text: the same in words, with the reason; empty if too little is known.
    """

    estimator: str | None = None
    text: str = ""

    @property
    def best(self) -> float:
        """As the metric ``best``: 1, 3, or 0 for cv; nan: neither."""
        return {"k1": 1.0, "k3": 3.0, "cv": 0.0}.get(self.estimator or "", math.nan)


@dataclass(frozen=True)
class Cause:
    """Why two policies disagree (`klmonitor.numbers.causes`).

    Attributes:
        name: short and stable, such as ``"shift"``; empty: nothing is known to be wrong.
        text: the same in words, with its numbers.
        impossible: a policy's log-probs cannot be log-probs of these tokens: no estimate holds.
    """

    name: str = ""
    text: str = ""
    impossible: bool = False


LINES = 6
"""Of a pair's verdict at most."""
_ESTIMATORS = ("k1", "k2", "k3")
COLUMNS = ("pair", *_ESTIMATORS, "tokens", "outliers k1 / k3", "dominated")
"""Of the table that a notebook shows."""

KNOWN: set[str] = set()
"""Names of metrics; the table of metrics (`klmonitor.numbers.metrics`) fills it."""


def _nothing(pair: PairReport) -> Sequence[str]:
    return ()


def _changed(whole: T, fields: Mapping[str, Any]) -> T:
    """A copy with other fields: `dataclasses.replace` makes and checks every field anew."""
    other = object.__new__(type(whole))
    vars(other).update(vars(whole))
    for name, value in fields.items():
        object.__setattr__(other, name, value)
    return other


class _Asked(Generic[T]):
    """The field of something, or of what gives it when somebody asks.

    Args:
        default: what it is where nothing was given.
    """

    def __init__(self, default: T) -> None:
        self._default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"_{name}"

    def __get__(self, pair: PairReport | None, owner: type | None = None) -> T:
        found: Any = self._default if pair is None else vars(pair)[self._name]
        return cast("T", found(pair) if callable(found) else found)

    def __set__(self, pair: PairReport, given: T | Callable[[PairReport], T]) -> None:
        vars(pair)[self._name] = given


@dataclass(frozen=True)
class PairReport:
    """The numbers of one pair at one step.

    Attributes:
        name: the pair, ``"{q}_{p}"``.
        values: metric name (without the ``kl/{pair}/`` prefix) -> value.
        extremes: the exact extreme tokens, most extreme first, left tail before right.
        histogram: (lower edge of |d| bucket with the sign of d, count) pairs of the non-empty
            buckets, ascending; coarse, for drawing.
        verdict: which estimator to believe.
        open_kinds: kinds of alert that are open on the pair after this step.
        words: says of the pair what there is to know beside the verdict, a sentence an item.
        penalty: the KL term that the objective has on it, in one line; empty: none, or unknown.
        cause: why the two policies disagree, where it is known.
        note: what to know before the numbers are read, a sentence; empty: nothing.
    """

    name: str
    values: Mapping[str, float]
    extremes: Sequence[ExtremeToken] = ()
    histogram: Sequence[tuple[float, float]] = ()
    verdict: _Asked[Verdict] = _Asked(Verdict())
    open_kinds: tuple[str, ...] = ()
    words: Callable[[PairReport], Sequence[str]] = field(default=_nothing, repr=False)
    penalty: str = ""
    cause: _Asked[Cause] = _Asked(Cause())
    note: str = ""

    def __getitem__(self, metric: str) -> float:
        """The value of a metric, nan if this step has none.

        Raises:
            KeyError: there is no metric of that name; the message has the nearest.
        """
        found = self.values.get(metric)
        if found is not None:
            return found
        if metric in KNOWN or metric.startswith("group/") or not KNOWN:
            return math.nan
        near = difflib.get_close_matches(metric, KNOWN, n=1)
        hint = f": did you mean {near[0]!r}?" if near else ", see docs/metrics.md"
        raise KeyError(f"no metric {metric!r}{hint}")

    @property
    def waits(self) -> bool:
        """Whether the cause was left to whoever asks: it is none that is told for its own sake."""
        return callable(vars(self)["_cause"])

    @property
    def impossible(self) -> bool:
        """Whether the log-probs cannot be what they are called."""
        return not self.waits and self.cause.impossible

    def changed(self, **fields: Any) -> PairReport:
        """A copy with other fields, whose names are not checked; else as `dataclasses.replace`."""
        return _changed(self, fields)

    def with_value(self, metric: str, value: float) -> PairReport:
        """A copy with one value more."""
        return self.changed(values=joined(self.values, {metric: value}))

    def explain(self, step: int) -> str:
        """A headline, a note, the cause, the first reasons, what is open, what to believe."""
        q, p = self.name.split("_")
        numbers = ", ".join(f"{name} {self._mean(name)}" for name in ("k1", "k2", "k3"))
        head = (
            f"step {step}, KL({q} || {p}) over {self.tokens:,.0f} tokens in "
            f"{self['sequences']:,.0f} sequences: {numbers} nats/token"
        )
        verdict = self.verdict.text
        believe = [f"believe {verdict}"] if verdict else []
        cause = [f"cause: {self.cause.text}"] if self.cause.text else []
        note = [f"note: {self.note}"] if self.note else []
        still = [f"open alerts: {', '.join(self.open_kinds)}"] if self.open_kinds else []
        room = LINES - len([head, *note, *cause, *still, *believe])
        return "\n  ".join([head, *note, *cause, *self.words(self)[:room], *still, *believe])

    def _mean(self, name: str) -> str:
        estimate = self.estimate(name)
        se = "" if math.isnan(estimate.se) else f" +- {estimate.se:.2g}"
        return f"{estimate.mean:.4g}{se}"

    def most_extreme(self, number: int) -> list[ExtremeToken]:
        """The first `number` extreme tokens of each tail."""
        if isinstance(self.extremes, ExtremeTokens):
            return list(self.extremes.most(number))
        tails: dict[str, list[ExtremeToken]] = {}
        for token in self.extremes:
            tails.setdefault(token.tail, []).append(token)
        return [token for tail in tails.values() for token in tail[:number]]

    def estimate(self, estimator: str) -> Estimate:
        """The five numbers of ``"k1"``, ``"k2"`` or ``"k3"``."""
        names = ("mean", "se", "var", "running_mean", "running_var")
        return Estimate(*(self[f"{estimator}/{name}"] for name in names))

    @property
    def k1(self) -> Estimate:
        """k1 = -d."""
        return self.estimate("k1")

    @property
    def k2(self) -> Estimate:
        """k2 = d^2 / 2."""
        return self.estimate("k2")

    @property
    def k3(self) -> Estimate:
        """k3 = expm1(d) - d."""
        return self.estimate("k3")

    @property
    def tokens(self) -> float:
        """Tokens counted."""
        return self["tokens"]

    def row_of_words(self) -> tuple[str, ...]:
        """The pair under `COLUMNS`."""
        means = (f"{self[f'{k}/mean']:.4g} ± {self[f'{k}/se']:.2g}" for k in _ESTIMATORS)
        outliers = f"{self['outliers/k1']:.0f} / {self['outliers/k3']:.0f}"
        level = self["dominance/level"]
        word = "" if math.isnan(level) else ("no", "warn", "severe")[int(level)]
        return self.name, *means, f"{self.tokens:.0f}", outliers, word


@dataclass(frozen=True)
class Health:
    """How klmonitor itself fares: of one process, or the worst of all.

    Attributes:
        errors: failures that were caught so far.
        dropped: rows, alerts and parts that were lost so far.
        active: whether everything that numbers are made of is captured.
        why: if not, what is missing and what it failed on.
    """

    errors: int = 0
    dropped: int = 0
    active: bool = True
    why: str = ""

    @property
    def values(self) -> dict[str, float]:
        """As values of a run."""
        return {
            "klmonitor/active": float(self.active),
            "klmonitor/errors": float(self.errors),
            "klmonitor/dropped": float(self.dropped),
        }


class _Pairs(dict[str, PairReport]):
    """Pairs by name."""

    def __missing__(self, name: str) -> PairReport:
        held = ", ".join(self) or "none"
        raise KeyError(f"no pair {name!r} at this step, which has {held}")


@dataclass(frozen=True)
class Report:
    """Everything one optimizer step (or a run of merged steps) found.

    Attributes:
        step: the last step that it covers.
        first_step: the first; equals `step` unless several were merged.
        phase: ``"train"`` or ``"eval"``.
        time: seconds since the epoch when the report was made.
        pairs: pair name -> numbers, only pairs that had tokens.
        alerts: openings and worsenings at this step.
        run_values: values that belong to the run, not to a pair (``klmonitor/errors``, ...).
        health: how klmonitor itself fares; over the ranks the worst.
    """

    step: int
    pairs: Mapping[str, PairReport]
    first_step: int = 0
    phase: str = "train"
    time: float = 0.0
    alerts: tuple[Alert, ...] = ()
    run_values: Mapping[str, float] = field(default_factory=dict)
    health: Health = Health()

    def __post_init__(self) -> None:
        """Let a pair that is not there say which are."""
        object.__setattr__(self, "pairs", _Pairs(self.pairs))

    @property
    def told(self) -> Report:
        """The report without alerts that are muted, for those who are told of alerts."""
        if not any(alert.muted for alert in self.alerts):
            return self
        return self.changed(alerts=tuple(alert for alert in self.alerts if not alert.muted))

    def changed(self, **fields: Any) -> Report:
        """As `PairReport.changed`."""
        other = _changed(self, fields)
        if "pairs" in fields:
            other.__post_init__()
        return other

    @property
    def extremes(self) -> list[ExtremeToken]:
        """The extreme tokens of all pairs."""
        return [token for pair in self.pairs.values() for token in pair.extremes]

    def scalars(self) -> dict[str, float]:
        """Every number under its full name, e.g. ``kl/policy_ref/k1/mean``."""
        flat = {
            f"kl/{name}/{metric}": value
            for name, pair in self.pairs.items()
            for metric, value in pair.values.items()
        }
        return flat | dict(self.run_values)

    def explain(self) -> str:
        """A verdict a person can read: two to six lines a pair, numbers and what to believe."""
        if not self.pairs:
            return f"step {self.step}: no tokens were counted"
        return "\n".join(pair.explain(self.step) for pair in self.pairs.values())

    def _repr_html_(self) -> str:
        """What a notebook shows: means with their errors, alerts, the verdict; all escaped."""
        head = f"step {self.step}"
        if self.first_step not in (0, self.step):
            head = f"steps {self.first_step} to {self.step}"
        head = f"<b>KL at {head}</b>" + (" (evaluation)" if self.phase == "eval" else "")
        rows = [pair.row_of_words() for pair in self.pairs.values()]
        alerts = "".join(text_html(alert.text()) for alert in self.alerts)
        return f"<div>{head}{table_html(COLUMNS, rows)}{alerts}{text_html(self.explain())}</div>"
