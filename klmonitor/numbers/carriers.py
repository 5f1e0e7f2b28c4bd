"""Which sequences, prompts or groups carry a pair's estimate, as dominance says for tokens.

The question asked of few tokens (`numbers.dominance`): the fewest that hold half of sum k3, or of
the spread of k1 over sequences, that stand apart from the next and pull the mean by errors of the
rest. Only the sixteen sequences of largest |S1| are known one by one; of prompts all are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from klmonitor.boundary import inert
from klmonitor.numbers.buckets import MIDDLES
from klmonitor.numbers.clusters import Array
from klmonitor.numbers.student import deviate_of_t
from klmonitor.numbers.sums import KEY, StepSums
from klmonitor.report.values import possible
from klmonitor.summary.fields import CLAMP, COLUMN, SEQUENCE_FIELDS

HALF = 0.5
APART, PULL = 2.5, 6.0
"""Smallest sqrt(j) ln(w_j / w_(j+1)), and smallest pull in standard errors of the rest."""
OWN = 0.85
"""Of what few sequences hold: if few tokens hold as much, it is these tokens, not the sequences."""
CHANCE = 1e-4
"""Odd tokens that fall here and there fall into few sequences by chance: judged at every step of a
run, a smaller chance is none."""
MOST_SHARE = 4
"""At most one in so many sequences, or prompts, is few."""
SMALLEST = 1e-3
"""Nats: of a smaller mean k3 nobody asks who carries it."""
SAME = 1e-6
"""Relative difference of two sums over the same tokens."""
FAR, ERRORS, SURE = 4.0, 5.0, 3.0
"""Times every other group's mean (several, as `surge` has it), standard errors above it, and as a
deviate by Student's t, whose clusters are few in a group, from which a group is apart."""
_FIELD = {name: i for i, name in enumerate(SEQUENCE_FIELDS)}
_SUMS = {"k1": 1, "k3": 3}
"""Place of an estimator in the sums of a prompt, (T, S1, S2, S3)."""


@dataclass(frozen=True)
class Few:
    """The few that carry an estimator.

    Attributes:
        places: indices into what was asked about.
        share: of sum k3, or of the spread of k1, that they hold.
    """

    places: tuple[int, ...]
    share: float


@dataclass(frozen=True)
class Totals:
    """Over all clusters, also those that are not known one by one.

    Attributes:
        count: B.
        t, s: sum T and sum S.
        tt, ts, ss: sums over clusters of T T, T S and S S.
    """

    count: float
    t: float
    s: float
    tt: float
    ts: float
    ss: float

    @classmethod
    def of(cls, t: Array, s: Array) -> Totals:
        """Of clusters that are all known."""
        both = np.array((np.ones_like(t), t, s))
        (count, whole, total), (_, tt, ts), (_, _, ss) = (both @ both.T).tolist()
        return cls(count, whole, total, tt, ts, ss)

    def about(self, mean: float) -> float:
        """Sum (S - mean T)^2."""
        return max(self.ss - 2 * mean * self.ts + mean * mean * self.tt, 0.0)

    def without(self, t: Array, s: Array) -> Totals:
        """Of the others."""
        return Totals(
            self.count - len(t),
            self.t - float(t.sum()),
            self.s - float(s.sum()),
            self.tt - float((t * t).sum()),
            self.ts - float((t * s).sum()),
            self.ss - float((s * s).sum()),
        )


def few(t: Array, s: Array, totals: Totals, name: str) -> Few | None:
    """The few of some clusters that carry ``"k1"`` or ``"k3"``; None: none do.

    Args:
        t: [n] tokens of those known one by one.
        s: [n] their sums of the estimator, nats.
        totals: over all.
        name: of the estimator.
    """
    most = min(int(totals.count // MOST_SHARE), len(t) - 1)
    if most < 1 or not totals.t > 0:
        return None
    mean = totals.s / totals.t
    weights = (s - mean * t) ** 2 if name == "k1" else s
    whole = totals.about(mean) if name == "k1" else totals.s
    order = np.argsort(-weights)
    held = weights[order].cumsum() / whole if whole > 0 else np.zeros(len(t))
    if not held[most - 1] >= HALF:
        return None
    best, found = APART, None
    for j in range(1, most + 1):
        chosen, last, following = order[:j], weights[order[j - 1]], weights[order[j]]
        if held[j - 1] < HALF or not last > 0:
            continue
        apart = math.sqrt(j) * math.log(last / following) if following > 0 else math.inf
        rest = totals.without(t[chosen], s[chosen])
        rest_mean = rest.s / rest.t
        error = math.sqrt(rest.about(rest_mean)) / rest.t
        if apart > best and abs(mean - rest_mean) >= PULL * error:
            best, found = apart, Few(tuple(chosen.tolist()), min(float(held[j - 1]), 1.0))
    return found


@dataclass(frozen=True)
class Carriers:
    """What carries a pair's estimate.

    Attributes:
        text: "4 of 32 sequences, all of one prompt, hold ..."; empty: nothing does.
        tokens: of these sequences or prompts.
    """

    text: str = ""
    tokens: float = 0.0


def carriers(sums: StepSums) -> Carriers:
    """What carries a pair of a step."""
    if not sums.k3 > SMALLEST * sums.n:
        return Carriers()
    rows, count = sums.sequences, sums.clustered.prompts
    known = rows[rows[:, KEY] > 0]
    prompts = _buckets(sums) if count >= MOST_SHARE else rows[:0]
    for name in ("k3", "k1"):
        by_tokens = _by_tokens(sums, name)
        found = few(known[:, _FIELD["t"]], known[:, _FIELD[name]], _totals(sums, name), name)
        if found is not None and not by_tokens >= OWN * found.share:
            some, every = known[list(found.places)], sums.column("sequences")
            if not _by_chance(sums, name, found, float(some[:, _FIELD["t"]].sum()), every):
                return _said(sums, name, found, some)
        of_prompts = _prompts(prompts, name)
        if of_prompts is not None and not by_tokens >= HALF:
            tokens = float(prompts[list(of_prompts.places), 0].sum())
            if not _by_chance(sums, name, of_prompts, tokens, count):
                few_of = f"{len(of_prompts.places)} of {count:.0f} prompts"
                text = f"{few_of} hold {of_prompts.share:.0%} of {_WHOLE[name]}"
                return Carriers(text, tokens)
    return Carriers()


def _by_tokens(sums: StepSums, name: str) -> float:
    """The share that a few tokens hold already; 0 where they do not carry it."""
    found = sums.dominance[name]
    share = found.v if name == "k1" else found.top_share
    return share if found.level >= 1 and share >= HALF else 0.0


def _by_chance(sums: StepSums, name: str, found: Few, tokens: float, clusters: float) -> bool:
    """Whether odd tokens that lie anywhere would put as much into some j of the clusters.

    m tokens, the fewest that hold `OWN` of the whole, each in the j with the share f of all tokens:
    of `found.share` of them the chance is exp(-m KL(share, f)) at most (Chernoff), for any j of B
    clusters times B over j.

    Args:
        sums: the pair's.
        name: ``"k1"`` or ``"k3"``.
        found: the j clusters.
        tokens: that they have.
        clusters: B.
    """
    share, f, j = min(found.share, 1.0), tokens / sums.n, len(found.places)
    if not f < share:
        return True
    d = np.clip(MIDDLES, -min(sums.smallest, CLAMP), min(sums.largest, CLAMP))
    odd = np.expm1(d) - d if name == "k3" else (d - sums.d / sums.n) ** 2
    order = np.argsort(-odd)
    counts = sums.histogram[order]
    held = (counts * odd[order]).cumsum()
    enough = int(np.searchsorted(held, OWN * held[-1]))
    others = counts[:enough].sum()
    m = others + (OWN * held[-1] - (held[enough - 1] if enough else 0.0)) / odd[order[enough]]
    far = share * math.log(share / f)
    far += (1 - share) * math.log((1 - share) / (1 - f)) if share < 1 else 0.0
    ways = math.lgamma(clusters + 1) - math.lgamma(j + 1) - math.lgamma(clusters - j + 1)
    return bool(ways - m * far > math.log(CHANCE))


_COLUMNS = {
    name: [COLUMN[one] for one in ("sequences", "t.t", f"t.{name}", f"{name}.{name}")]
    for name in _SUMS
}
_WHOLE = {"k1": "the spread of k1", "k3": "sum k3"}


def _totals(sums: StepSums, name: str) -> Totals:
    """Of all sequences."""
    total = sums.k3 if name == "k3" else -sums.d
    count, tt, ts, ss = (sums.columns[i] for i in _COLUMNS[name])
    return Totals(count, sums.n, total, tt, ts, ss)


def _buckets(sums: StepSums) -> Array:
    """[prompts, 4] sums of the prompts that have tokens; empty where not all are known."""
    rows = sums.prompts.reshape(-1, sums.prompts.shape[-1])
    found: Array = rows[rows[:, 0] > 0] if sums.clustered.prompts > 0 else rows[:0]
    return found


def _prompts(rows: Array, name: str) -> Few | None:
    if len(rows) < MOST_SHARE:
        return None
    t, s = rows[:, 0], rows[:, _SUMS[name]]
    return few(t, s, Totals.of(t, s), name)


def _said(sums: StepSums, name: str, found: Few, rows: Array) -> Carriers:
    count = sums.column("sequences")
    one = _one_prompt(_buckets(sums), rows)
    verb = "holds" if len(rows) == 1 else "hold"
    text = (
        f"{len(rows)} of {count:.0f} sequences{', all of one prompt,' if one else ''} {verb} "
        f"{found.share:.0%} of {_WHOLE[name]} ({_places(rows.tolist())})"
    )
    return Carriers(text, float(rows[:, _FIELD["t"]].sum()))


def _one_prompt(prompts: Array, rows: Array) -> bool:
    """Whether the tokens of some sequences are all that one prompt has."""
    if len(rows) < 2 or not len(prompts):
        return False
    mine = rows[:, [_FIELD["t"], _FIELD["k1"], _FIELD["k3"]]].sum(axis=0)
    near = np.abs(prompts[:, [0, 1, 3]] - mine) <= SAME * (np.abs(mine) + 1)
    if near.all(axis=1).any():
        return True
    # fewer than all completions of the prompt: it has as many tokens, and nearly all of the sum
    within = (prompts[:, 0] >= mine[0]) & (np.abs(prompts[:, 3] - mine[2]) <= 0.1 * abs(mine[2]))
    return bool(within.any() and prompts[within, 0].min() < 2 * mine[0])


def _places(rows: Sequence[Sequence[float]], most: int = 4) -> str:
    named = [
        f"{row[_FIELD['sequence']]:.0f} of micro-batch {row[_FIELD['micro_batch']]:.0f}"
        for row in rows[:most]
    ]
    more = f" and {len(rows) - most} more" if len(rows) > most else ""
    return "sequence " + ", ".join(named) + more


def group_apart(values: Mapping[str, float]) -> str:
    """In words, the one declared group that is far above all others and makes most of the KL.

    By k3, else by k1, which alone tells of a group that has collapsed. How many tokens a group has
    is in no metric: its share of the sum is at least what it would be if all other groups were at
    the largest of theirs, and that must be half. Nor may a few tokens make it, which are named
    themselves. Empty: there is no such group.

    Args:
        values: the pair's metrics.
    """
    groups = [
        name.removeprefix("group/").removesuffix("/k3/mean")
        for name in possible(values)
        if name.startswith("group/") and name.endswith("/k3/mean")
    ]
    known = [group for group in groups if f"group/{group}/k3/mean" in values]
    if len(known) < 2:
        return ""
    return _apart(values, known, "k3") or _apart(values, known, "k1")


def _apart(values: Mapping[str, float], groups: Sequence[str], estimator: str) -> str:
    means = {group: values[f"group/{group}/{estimator}/mean"] for group in groups}
    second, first = sorted(means, key=means.__getitem__)[-2:]
    high, low = means[first], means[second]
    errors = (values.get(f"group/{group}/{estimator}/se", math.nan) for group in (first, second))
    t = (high - low) / error if (error := math.hypot(*errors)) > 0 else math.nan
    clusters = values.get("clusters", math.nan) / len(groups)
    if not (high > FAR * low and t > ERRORS and deviate_of_t(t, clusters - 1) > SURE):
        return ""
    mean = values.get(f"{estimator}/mean", math.nan)
    if not (mean - low) / (high - low) * high >= HALF * mean > 0:
        return ""
    rest = values.get(f"{estimator}/mean_without_top", math.nan)
    carried = values.get(f"dominance/{estimator}/level", math.nan) >= 1
    if carried and not rest - low >= HALF * (mean - low):
        return ""
    others = f"{inert(second)}'s" if len(groups) == 2 else "the others'"
    most = "" if len(groups) == 2 else " at most"
    return f"{estimator} of group {inert(first)} is {high:.3g} nats, {others} {low:.3g}{most}"
