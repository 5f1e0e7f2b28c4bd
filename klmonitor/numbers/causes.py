"""Why do trainer and engine disagree? A table of rules on signatures.

A rule looks at `Evidence`: the signatures of the last steps together (`summary.signatures`), the
step's metrics, and what carries the estimate. The first that holds names the cause. Thresholds are
far from what a clean engine does and far inside what the fault does; how often each is right, and
wrong, is the confusion matrix of docs/causes.md, which `benchmarks/causes.py` makes.

    surprise = mean(-log p(x) - H)            0 if the trainer's policy sampled
    slope    of d on (log q + log p) / 2      0 at one temperature; at most 2 (T - 1) / (T + 1)
    kept     = mean(e^d) = 1 + gap            the mass that a cut sampler keeps, renormalised
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np

from klmonitor.numbers.buckets import MIDDLES
from klmonitor.numbers.carriers import carriers
from klmonitor.numbers.causewords import (
    LATELY,
    says,
    says_coarse,
    says_context,
    says_cut,
    says_end,
    says_lone,
    says_scaled,
    says_sequences,
    says_shift,
    says_stale,
    says_surprise,
    says_temperature,
    says_turned,
    says_unnormalised,
)
from klmonitor.numbers.clusters import Array, ratio
from klmonitor.numbers.evidence import Evidence, Signs, Z, oldest
from klmonitor.numbers.impossible import blamed, impossible, suspect
from klmonitor.numbers.signatures import Signatures
from klmonitor.numbers.sums import StepSums
from klmonitor.numbers.verdicts import UNKNOWN_SAMPLER
from klmonitor.report import Cause, PairReport
from klmonitor.summary.fields import ASIDE, CLAMP

STEPS = 5
"""Steps whose signatures are judged together."""
FEWEST_TOKENS = 512
"""With fewer no cause but impossible input is named."""


@dataclass(frozen=True)
class CauseRule:
    """One cause.

    Attributes:
        name: as in `report.Cause`.
        holds: whether it is the cause, as far as one can see.
        text: what to say.
        mismatch: True: asked of trainer against engine alone; False: of other pairs alone; None:
            of any.
    """

    name: str
    holds: Callable[[Evidence], bool]
    text: Callable[[Evidence], str]
    mismatch: bool | None = None


class Causes:
    """The causes of a run's steps: remembers the signatures of the last `STEPS` of them."""

    def __init__(self) -> None:
        """Nothing seen."""
        self._steps: deque[dict[str, Array]] = deque(maxlen=STEPS)

    def name(
        self, steps: Mapping[str, StepSums], pairs: Mapping[str, PairReport], *, advance: bool
    ) -> dict[str, PairReport]:
        """The pairs' reports with their causes.

        Args:
            steps: the sums behind them.
            pairs: the reports.
            advance: whether the step is one of the series (evaluation is not).
        """
        mine = {name: sums.signatures for name, sums in steps.items()}
        if advance:
            self._steps.append(mine)
        recent = list(self._steps) if advance else [mine]
        found = {}
        for name, pair in pairs.items():
            together = reduce(np.add, [one[name] for one in recent if name in one])
            why = _why(steps[name], pair, Signs(Signatures(together.tolist())))
            found[name] = pair if why == NO_CAUSE else pair.changed(cause=why)
        return _without_sampler(found)


def _why(sums: StepSums, pair: PairReport, signs: Mapping[str, float]) -> Cause | Asked:
    """A pair's cause, from the signatures of the last steps; one that nobody is told can wait."""
    why = impossible(sums, pair.extremes) if suspect(sums) else NO_CAUSE
    if why.name or not signs["tokens"] >= FEWEST_TOKENS:
        return why
    q, p = pair.name.split("_")
    held = sums.copied()  # what others find of the sums is theirs to keep
    evidence = Evidence(
        q, p, signs, pair.values, partial(carriers, held), partial(_turned, held, pair)
    )
    waits = not any(rule.holds(evidence) for rule in TOLD[evidence.mismatch])
    return Asked(evidence) if waits else cause(evidence)


NO_CAUSE = Cause()


class Asked:
    """Finds a cause when it is first asked for.

    Args:
        evidence: of the pair; not held any longer than that.
    """

    __slots__ = ("_evidence", "_found")

    def __init__(self, evidence: Evidence) -> None:
        self._evidence: Evidence | None = evidence
        self._found = NO_CAUSE

    def __call__(self, _: PairReport | None) -> Cause:
        """The cause; two threads that ask at once find the same."""
        evidence = self._evidence
        if evidence is not None:
            self._found = cause(evidence)
            self._evidence = None  # behind it: who finds none finds what was found
        return self._found

    def __reduce__(self) -> tuple[Any, ...]:
        """What is copied, or sent elsewhere, is the cause."""
        found = self(None)
        return Cause, (found.name, found.text, found.impossible)


def _without_sampler(pairs: dict[str, PairReport]) -> dict[str, PairReport]:
    """The pairs, where the log-probs of what drew the tokens cannot be: others have no weights."""
    drew = [pair for pair in pairs.values() if pair.impossible and pair["on_policy"] == 1]
    whose = next((who for pair in drew if (who := blamed(pair.cause, pair.name.split("_")[0]))), "")
    if not whose:
        return pairs
    unknown = Cause(
        UNKNOWN_SAMPLER, f"what drew these tokens is unknown: {whose} log-probs are impossible"
    )
    return {
        name: pair.changed(cause=unknown)
        if pair["on_policy"] == 0 and not pair.cause.name
        else pair
        for name, pair in pairs.items()
    }


def _turned(sums: StepSums, pair: PairReport) -> float:
    """Mean(e^-d) - 1, whose expectation is 0 where p drew the tokens; from the histogram."""
    if not (pair["on_policy"] == 1 and pair["gap_z"] > 2):  # another policy drew, or q did
        return math.nan
    d = np.clip(MIDDLES, -min(sums.smallest, CLAMP), sums.largest)
    return ratio(float(sums.histogram @ np.expm1(-d)), sums.n)


def cause(evidence: Evidence) -> Cause:
    """The first cause of the table that holds."""
    if not evidence["tokens"] >= FEWEST_TOKENS:
        return NO_CAUSE
    for rule in ASKED[evidence.mismatch]:
        if rule.holds(evidence):
            return Cause(rule.name, rule.text(evidence))
    return NO_CAUSE


# --- what holds --------------------------------------------------------------------------------
def _shift(e: Evidence) -> bool:
    if not (e.significant("shift", 0.1) and abs(e["before"] - e["after"]) > 0.1):
        return False
    most = e.mismatch or max(e["before"], e["after"]) > e["qp"]  # of policies that may be far apart
    return most and not e["qp"] > 0.9


def _other_context(e: Evidence) -> bool:
    """Log-probs of the tokens after the neighbour's prefix: they bend with the neighbour's.

    Of a policy far from its reference they do too, where the text is not alike backwards; there
    k1 must be below 0.
    """
    bends = abs(e["gap"]) > 0.05 and abs(e["gap_z"]) >= Z and abs(e["context_z"]) >= Z
    return bends and (e.mismatch or (e["d_z"] > Z and e["d"] > NEGATIVE))


def _end_off(end: str, errors: float = 5.0) -> Callable[[Evidence], bool]:
    def holds(e: Evidence) -> bool:
        beyond, error = e[end] - e["middle"], e[f"{end}_se"]
        return e[end] > 8 * e["middle"] and beyond > 0.1 and beyond > errors * error

    return holds


def _other_tokens(e: Evidence) -> bool:
    """Some tokens, here and there, are hardly possible to the trainer, the others fit.

    Of the same tokens, computed otherwise (other weights, a wrong cache), some are likelier to the
    trainer and make up for them: mean(e^d) stays 1. Of others nothing does: it lacks their share.
    """
    n, far, near = (
        e.numbers.get(name, math.nan) for name in ("tokens", "log_ratio/le_-2", "log_ratio/ge_2")
    )
    here_and_there = not far > 0.2 * e.carriers.tokens > 0
    some = far >= max(0.01 * n, 5) and far > 4 * near
    if not (some and here_and_there and e["d_z"] < -5):
        return False
    if not (e["gap"] < -LACKING * far / n and e["gap_z"] < -5):
        return False
    return e["up"] + e["down"] < 0.6 and abs(e.numbers.get("log_ratio/p50", 1.0)) < ASIDE


def _garbled(e: Evidence) -> bool:
    """Log-probs that do not go with each other: of other tokens, or of another place."""
    apart = e["up"] + e["down"] > 0.6 and e["gap"] - e["d"] > 10 * COARSE
    n, far = (e.numbers.get(name, math.nan) for name in ("tokens", "log_ratio/le_-2"))
    lost = e["gap"] < -0.1 and e["gap_z"] < -5 and far > 0.1 * n and e["d_z"] < -5
    return apart and (e["qp"] < UNLIKE or (lost and e["qp"] < ALIKE))


def _scaled(e: Evidence) -> bool:
    """One is the other times a number: d on one side, larger where the token is less likely."""
    many = e["up"] + e["down"] > 0.5
    if not (many and min(e["up"], e["down"]) <= 0.02 * max(e["up"], e["down"])):
        return False
    share = math.log1p(e["gap"]) if e["gap"] > -1 else math.nan  # of a cut vocabulary this is d
    cut = share < 0 and e["d"] > 1.4 * share
    return e["qp"] > 0.9 and e.significant("slope", 0.1) and not cut


def _unnormalised(e: Evidence) -> bool:
    """The mirror of a cut: p above q nearly everywhere, by about the same."""
    above = e["up"] > 3 * e["down"] and e["gap"] - e["d"] < 0.5 * e["gap"]
    flat = abs(e["slope"]) < 0.025
    return e["gap"] > 0.01 and e["gap_z"] > Z and above and flat


def _turned_round(e: Evidence) -> bool:
    """The tokens fit draws from p: mean(e^-d) is 1, and mean(e^d) is not; k1 is below 0."""
    below = e["d"] > NEGATIVE and e["d_z"] > Z and e["gap_z"] > Z
    return below and abs(e.turned) < 0.25 * e["gap"]


def _argmax(e: Evidence) -> bool:
    """Q is never the lower one but for noise, and by moderate amounts, more than a cut leaves."""
    above, near, far, very = (
        e.numbers.get(f"log_ratio/{k}", math.nan) for k in ("ge_1", "le_-1", "le_-2", "le_-5")
    )
    many = e["down"] > 0.05 and far >= max(0.005 * e.numbers.get("tokens", math.nan), 5)
    one_side = e["up"] <= 0.1 * e["down"] and above == 0 and not very > near / 3
    return one_side and many and e["gap_z"] < -Z


def _reference(e: Evidence) -> bool:
    """Nearer to the reference: a trainer that rounds more than both is far from both, by little."""
    return e["gap"] - e["d"] > ROUNDING and e["who"] < 0 and e["who_z"] < -Z


def _cut(e: Evidence) -> bool:
    return e["gap"] < -0.01 and e["gap_z"] < -Z and e["down"] > 3 * e["up"]


def _temperature(e: Evidence) -> bool:
    """D grows with the log-prob; weights apart, of which the sampler's are surer, do it little."""
    most = e["up"] + e["down"] > 0.1  # not the slope of a few odd tokens
    grows = e["slope"] < 0 or e["tilt"] > TILTED or e["fit"] > FITS
    return most and grows and not e["qp"] < ALIKE and e.significant("slope", 0.025)


def _surprised(e: Evidence) -> bool:
    """And both report the same: of other weights' tokens, scored so, surprise is to be expected."""
    same = not e.mismatch or e["gap"] - e["d"] <= COARSE
    return same and e.significant("surprise", max(0.05 * e["entropy"], 0.01))


def _sure_cut(e: Evidence) -> bool:
    return _surprised(e) and e["surprise"] < 0 and e["sure"] >= SURE and e["sure_other"] == 0


def _sure_colder(e: Evidence) -> bool:
    likely = e["sure_other"] >= 0.03 * e["sure"]
    return _surprised(e) and e["surprise"] < 0 and e["sure"] >= SURE and likely


def _stale(e: Evidence) -> bool:
    fresh, old = e["lag0"], oldest(e)
    error = math.hypot(e["lag0_se"], e[f"{old}_se"]) if old else math.nan
    return bool(old) and e[old] > max(2 * fresh, COARSE) and e[old] - fresh > 5 * error


def _apart(e: Evidence) -> bool:
    """Further apart than rounding or some updates make."""
    return _coarse_or_stale(e) and e["gap"] - e["d"] > FAR


def _coarse_or_stale(e: Evidence) -> bool:
    """Of the tokens at large: over the last steps, and now without those that dominate.

    An engine that draws from what it reports has a gap of 0, however coarse or stale.
    """
    if e.significant("gap", 0.01):
        return False
    dominated = e.numbers.get("dominance/k3/level", 0.0) >= 1
    now = e.numbers.get("k3/mean_without_top" if dominated else "k3/mean", math.inf)
    return e["gap"] - e["d"] > COARSE and not now <= COARSE


ALIKE, UNLIKE = 0.7, 0.3
"""Correlation of two policies' log-probs within sequences: of other tokens' it is near 0."""
TILTED, FITS = 4.0, 0.45
"""Twice cov(d, m) over var(d), and m's share of d's variance (`Signatures.tilt`): of weights that
are .3 to 2 in logits apart 1.3 to 3.2 and at most .27; of temperatures up to 1.5 it is above 5, and
from 1.5 on the share is above .6."""
LACKING = 0.5
"""Of the share of tokens that the trainer finds hardly possible, what the gap must lack: all of it
where the ids are others, nothing where the engine drew what it scores."""
SURE = 100.0
"""Tokens beside the nearly sure ones that should have come: enough to tell none from few."""
COARSE = 0.01
"""Nats of k3 that noise of .1 on an engine's logits, more than 16 bits make, does not reach; the
norm of the pair (`rollout_info` of the alert limit)."""
ROUNDING = 2.5e-3
"""Nats of k3 that a trainer in few bits (noise of .1 on its logits) does not reach."""
NEGATIVE = 1e-3
"""Nats by which k1 is below 0 for more than rounding."""
FAR = 1.0
"""Nats of k3 that neither coarse arithmetic nor some updates make."""


BY_NOBODY = (
    ", or sampled by nobody (prompt or tool tokens that the mask keeps: decode them to tell)"
)
"""Of tokens more surprising than the policy's own: others' text is so too, under any scores."""


def _not_q(e: Evidence) -> bool:
    return e.significant("gap", 0.01)


_of_engines = partial(CauseRule, mismatch=True)
RULES: tuple[CauseRule, ...] = (
    _of_engines(
        "identical",
        lambda e: e.numbers.get("identical") == 1,
        says("{q} and {p} are bit-equal: bit-equal engines, or the trainer's own log-probs were "
              "passed as the engine's"),
    ),
    CauseRule("shift", _shift, says_shift),
    CauseRule("shift", _other_context, says_context),
    _of_engines("empty sequences", _end_off("lone", 3.0), says_lone),
    _of_engines("first token", _end_off("first"), says_end("first")),
    _of_engines("last token", _end_off("last"), says_end("last")),
    CauseRule("scaled", _scaled, says_scaled),
    _of_engines(
        "argmax",
        _argmax,
        says("{q} is never the lower one: it reports the log-prob of the likeliest token, not of "
              "the sampled one"),
    ),
    _of_engines(
        "other tokens",
        _other_tokens,
        says("the engine and the trainer do not score the same tokens: some are nearly "
              "impossible to {p}, the others fit (tokenised again, or ids replaced)"),
    ),
    _of_engines(
        "other tokens",
        _garbled,
        says("the engine and the trainer do not score the same tokens: {p}'s log-probs do not go "
              "with those of {q}, their correlation is {qp:.2f} (tokenised again, ids replaced, "
              "rows of another batch, or more than one position off)"),
    ),
    _of_engines("stale", _stale, says_stale),
    CauseRule("sequences", lambda e: bool(e.carriers.text), says_sequences),
    _of_engines(
        "reference",
        _reference,
        lambda e: (
            f"{e.q} serves the reference, or a policy near it: its log-probs are nearer to ref's "
            f"than to {e.p}'s ({e['who_z']:.0f} errors): weights never arrive, or an adapter is "
            f"off; or {e.p} and ref are swapped; or {e.p} alone is scored otherwise (dropout, "
            f"another mask): score {e.p} twice"
        ),
    ),
    _of_engines("cut", _cut, says_cut),
    _of_engines("temperature", _temperature, says_temperature),
    _of_engines("unnormalised", _unnormalised, says_unnormalised),
    CauseRule(
        "other sampler",
        _surprised,
        lambda e: says_surprise(
            f"not drawn from {e.q} as it is scored (another temperature, a cut vocabulary, other "
            f"weights, or dropout while scoring){BY_NOBODY if e['surprise'] > 0 else ''}"
        )(e),
        mismatch=False,
    ),
    _of_engines(
        "cut, scored raw",
        _sure_cut,
        says_surprise("sampled from a cut vocabulary (top-p, top-k, min-p), scored raw"),
    ),
    _of_engines(
        "colder, scored raw",
        _sure_colder,
        says_surprise("sampled at a lower temperature than scored"),
    ),
    _of_engines(
        "narrower, scored raw",
        lambda e: _surprised(e) and e["surprise"] < 0,
        says_surprise("sampled at a lower temperature or from a cut vocabulary, scored raw"),
    ),
    _of_engines(
        "warmer, scored raw",
        _surprised,
        says_surprise(f"sampled at a higher temperature than scored{BY_NOBODY}"),
    ),
    CauseRule("turned round", _turned_round, says_turned),
    _of_engines(
        "unknown",
        _apart,
        says(f"unknown: {{k3:.2g}} nats of k3 {LATELY} are more than a coarse engine or stale "
             "weights make, and no known cause fits (other weights, other tokens, "
             "another prompt?)"),
    ),
    _of_engines("coarse or stale", _coarse_or_stale, says_coarse),
    _of_engines(
        "unknown",
        _not_q,
        says("unknown: the tokens were not drawn from {q} (gap {gap:+.2g}, {z:+.0f} errors), and "
              "no known cause fits"),
    ),
)  # fmt: skip
"""In the order in which they are asked: what corrupts the others' evidence comes first."""
ASKED = {who: [rule for rule in RULES if rule.mismatch in (None, who)] for who in (True, False)}
"""The same of trainer against engine, and of other pairs."""


def is_told(mismatch: bool, name: str) -> bool:
    """Whether a cause of that name is told for its own sake, and not beside something else."""
    return name not in QUIET if mismatch else name in OF_ANY_PAIR


QUIET = ("identical", "coarse or stale", "turned round", "unknown")
"""Of trainer against engine all but these are."""
OF_ANY_PAIR = ("shift", "scaled", "other sampler")
"""Of other pairs these alone."""
TOLD = {who: [rule for rule in rules if is_told(who, rule.name)] for who, rules in ASKED.items()}
"""What is asked at every step, since it is told."""
